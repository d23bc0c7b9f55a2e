"""Settings for rq-dashboard: `rq-dashboard -c setpoint.rqdash -u redis://… -b 127.0.0.1`.

Importing this module also repairs rq-dashboard 0.9 in this process, before its pages are registered:

- nothing is ever unpickled: jobs that are not JSON are listed, their contents are not shown;
- requeue keeps `meta`, and leaves alone what it cannot read; for our hints it does nothing, as they hold no work:
  what is due stays due, and a deleted hint is rung again;
- `GET /requeue/<queue>`, which any link on any page could call, is refused;
- markup in names, results and errors is shown, not run; a Content-Security-Policy stands behind that;
- a job that is no more answers 404 instead of an error page.

Flask reads the constants in capitals.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final, cast

import rq_dashboard.web as _web
from flask import Response, abort, current_app, request
from rq import Queue, Worker
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job

from setpoint.jobs import JSONSerializer, is_hint

__all__ = ["CSP", "RQ_DASHBOARD_JSON_ENCODER"]

_log = logging.getLogger(__name__)

CSP: Final = "; ".join(  # noqa: FLY002  one directive a line
    (
        "default-src 'self'",
        # The dashboard's own scripts are inline, and its templates are compiled in the browser.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)

_NOT_SHOWN = "(not JSON: not shown)"
_UNSAFE = frozenset("<>\"'\\")


class RQ_DASHBOARD_JSON_ENCODER(json.JSONEncoder):  # noqa: N801  Flask takes settings from names in capitals
    """What JSON does not know is shown as text."""

    def default(self, o: object) -> str:
        """Text of anything."""
        return str(o)


class _Shown:
    """A serializer that reads JSON, and for all else has a remark instead of an error."""

    @staticmethod
    def dumps(value: Any, /) -> bytes:
        return JSONSerializer.dumps(value)

    @staticmethod
    def loads(data: bytes, /) -> Any:
        try:
            return JSONSerializer.loads(data)
        except (ValueError, RecursionError):
            return _NOT_SHOWN


class _Job(Job):
    """A job that is read with our serializer whoever asks, and that can always be shown."""

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:  # noqa: A002
        super().__init__(None, connection=connection, serializer=_Shown if serializer is None else serializer)
        if id is not None:
            # RQ refuses to make an id with other characters than letters, digits, _ and -; one that is there is shown.
            self._id = id

    def _deserialize_data(self) -> None:
        call: Any
        try:
            name, _, args, kwargs = call = JSONSerializer.loads(self.data)
            readable = isinstance(name, str) and isinstance(args, list) and isinstance(kwargs, dict)
        except (ValueError, TypeError, RecursionError):
            readable = False
            call = None
        if not readable:
            call = (_NOT_SHOWN, None, [], {})
        self._func_name, self._instance, self._args, self._kwargs = call

    def is_json(self) -> bool:
        """Whether writing it back leaves it as it is."""
        try:
            JSONSerializer.loads(self.data)
            stored: Any = self.connection.hmget(self.key, "meta", "result")
            for each in stored:
                if each:
                    JSONSerializer.loads(each)
        except (ValueError, RecursionError):
            return False
        return True


class _Queue(Queue):
    """A queue of such jobs."""

    job_class = _Job

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "serializer": options.get("serializer") or _Shown})


class _Worker(Worker):
    """A worker seen from outside, with such jobs and queues."""

    job_class = _Job
    queue_class = _Queue

    def get_current_job(self) -> Job | None:
        """None too if the job is gone already."""
        try:
            return super().get_current_job()
        except NoSuchJobError:
            return None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "serializer": options.get("serializer") or _Shown})


def _requeue_job(job_id: str, connection: Any, serializer: Any = None) -> None:
    """As RQ's, for jobs in JSON; our hints and what cannot be read stay as they are."""
    if is_hint(job_id):
        _log.info("a hint is not requeued: what it stood for is due anyway", extra={"job_id": job_id})
        return
    try:
        job = _Job.fetch(job_id, connection=connection, serializer=serializer)
        if not isinstance(job, _Job) or not job.is_json():
            _log.warning("not requeued: its contents are not JSON", extra={"job_id": job_id})
            return
        job.requeue()
    except (NoSuchJobError, InvalidJobOperation):
        _log.info("not requeued: it is not among the failed", extra={"job_id": job_id})


def _guard() -> Response | None:
    """Refuse what must not be: see the module's text."""
    endpoint = (request.endpoint or "").rpartition(".")[2]
    arguments = request.view_args or {}
    if endpoint == "requeue_all" and request.method != "POST":
        return Response("requeueing needs a POST\n", 405, {"Allow": "POST"}, mimetype="text/plain")
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        return Response("only from the dashboard's own pages\n", 403, mimetype="text/plain")
    # These names are written into scripts without escaping.
    if endpoint == "jobs_overview" and any(
        _UNSAFE & set(value) for value in arguments.values() if isinstance(value, str)
    ):
        abort(404)
    number = arguments.get("instance_number")
    if number is not None and number >= len(cast("Any", current_app.config)["RQ_DASHBOARD_REDIS_URL"]):
        abort(404)
    return None


def _harden(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CSP
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    if response.mimetype == "application/json":
        # The pages put most values into HTML as they are. In JSON these two occur within strings only.
        response.set_data(response.get_data(as_text=True).replace("<", "‹").replace(">", "›"))
    return response


def _gone(_: Exception) -> Response:
    return Response("no such job: it has ended and been forgotten, or was deleted\n", 404, mimetype="text/plain")


def _repair() -> None:
    web: Any = _web
    web.config.serializer = _Shown
    web.Job, web.Queue, web.Worker, web.requeue_job = _Job, _Queue, _Worker, _requeue_job
    blueprint = web.blueprint
    # Before its own hook, which opens a connection for any instance number.
    blueprint.before_request_funcs.setdefault(None, []).insert(0, _guard)
    blueprint.after_request(_harden)
    blueprint.register_error_handler(NoSuchJobError, _gone)


_repair()
