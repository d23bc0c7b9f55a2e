"""Log lines: their keys, what is masked, and what cannot break them."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from setpoint import logs
from setpoint.errors import ConfigurationError

LOG = logging.getLogger("setpoint.tests")


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_line_has_the_documented_keys_in_order(out: io.StringIO) -> None:
    logs.configure("json", "info", stream=out)
    LOG.info("drained", extra={"event": "entity.reached", "took_ms": 812, "entity": "host/web-7", "zebra": 1})
    (line,) = lines(out)
    assert list(line) == ["ts", "level", "event", "msg", "entity", "took_ms", "zebra"]
    assert (line["level"], line["event"], line["msg"]) == ("info", "entity.reached", "drained")
    assert line["took_ms"] == 812
    assert len(line["ts"]) == len("2026-01-01T00:00:00.000Z")
    assert line["ts"].endswith("Z")


def test_a_line_of_someone_else_names_its_logger(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    logging.getLogger("theirs.module").warning("count %d", 3)
    assert lines(out)[0]["event"] == "log.theirs.module"
    assert lines(out)[0]["msg"] == "count 3"


def test_auto_is_text_only_on_a_terminal(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.configure("auto", stream=out)
    LOG.info("one")
    assert lines(out)[0]["msg"] == "one"
    tty = io.StringIO()
    monkeypatch.setattr(tty, "isatty", lambda: True)
    logs.configure("auto", stream=tty)
    LOG.info("two words", extra={"event": "x.y", "goal": "a b", "due": "now"})
    assert tty.getvalue().rstrip().endswith('INFO     x.y two words goal="a b" due=now')
    assert "two" not in out.getvalue()  # the second call replaced the first


def test_level_and_unknown_settings(out: io.StringIO) -> None:
    logs.configure("json", "WARNING", stream=out)
    LOG.info("no")
    LOG.warning("yes")
    assert [line["msg"] for line in lines(out)] == ["yes"]
    with pytest.raises(ConfigurationError, match="level"):
        logs.configure("json", "loud", stream=out)
    with pytest.raises(ConfigurationError, match="format"):
        logs.configure("xml", "info", stream=out)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@host:6379/0",
        "rediss://me:hunter2@host/0",
        "redis://me:p@hunter2@host/0",
        "redis://me:p/hunter2?x@host/0",
        "redis+sentinel://me:hunter2@a:1,b:2/m/0?sentinel_password=hunter2",
        "https://host/x?token=hunter2&y=1",
    ],
)
def test_secrets_never_appear(form: logs.Format, url: str, out: io.StringIO) -> None:
    logs.configure(form, stream=out)
    try:
        raise ConnectionError(f"cannot reach {url} now")
    except ConnectionError:
        LOG.exception("lost %s", url, extra={"owner": url, "err": f"at {url}"})
    assert "hunter2" not in out.getvalue()
    assert "***" in out.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_in_a_value_starts_a_new_line_or_steers_the_terminal(form: logs.Format, out: io.StringIO) -> None:
    logs.configure(form, stream=out)
    LOG.info("a\nb\x1b[2J\u2028c", extra={"entity": "x\ny"})
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()


def test_errors_become_text(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    try:
        raise KeyError("gone")
    except KeyError:
        LOG.exception("failed")
    (line,) = lines(out)
    assert (line["err"], line["err_type"]) == ("'gone'", "KeyError")
    assert "Traceback" in line["trace"]


def test_odd_values_cost_nothing(out: io.StringIO) -> None:
    handler = logs.configure("json", stream=out)
    # Straight to our handler: pytest's own raises here.
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "no %d place", ("such",), None))
    LOG.info("x", extra={"state": object(), "goal": "\udc80", "task": None, "step": "y" * 100_000})
    first, second = lines(out)
    assert first["msg"] == "no %d place"
    assert "task" not in second
    assert len(second["step"]) < 10_000


def test_bound_fields_are_on_all_lines_of_the_block_and_of_no_other_thread(out: io.StringIO) -> None:
    logs.configure("json", stream=out)
    with logs.bound(entity="host/1", action="drain"):
        with logs.bound(action="stop"):
            logging.getLogger("app").info("inner", extra={"try": 2})
        thread = threading.Thread(target=lambda: LOG.info("elsewhere"))
        thread.start()
        thread.join()
        LOG.info("outer", extra={"action": "mine"})
    LOG.info("after")
    inner, elsewhere, outer, after = lines(out)
    assert (inner["entity"], inner["action"], inner["try"]) == ("host/1", "stop", 2)
    assert outer["action"] == "mine"
    assert "entity" not in after
    assert "entity" not in elsewhere or hasattr(threading.Thread, "_context")  # newer Pythons may hand it on
