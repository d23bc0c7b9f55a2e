"""RQ jobs that are hints: each says "something is due in this lane", for a worker to wake up and for people to read.

A hint is never the truth. It may be lost, doubled, late or forged; what it names is decoration that the engine does not
read back. RQ itself is not imported here: a hint is three Redis commands that write what RQ 2.12 reads.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from setpoint.clock import SECOND_US, to_datetime
from setpoint.entity import kind_of
from setpoint.errors import ConfigurationError

__all__ = [
    "HINT_PREFIX",
    "HINT_TTL",
    "QUEUES_KEY",
    "JSONSerializer",
    "hint_commands",
    "hint_id",
    "is_hint",
    "job_key",
    "plain",
    "queue_key",
    "reconcile",
]

HINT_PREFIX: Final = "sp-"
"""How the id of every hint begins; nobody else's jobs should."""

HINT_TTL: Final = 86_400
"""Seconds after which RQ's hash of a hint that nobody took is forgotten; the hint is then rung again."""

QUEUES_KEY: Final = "rq:queues"
"""RQ's set of all queues: a dashboard shows a queue only if it is named here."""

FUNCTION: Final = "setpoint.jobs.reconcile"
SERIALIZER: Final = "setpoint.jobs.JSONSerializer"

_TIMEOUT, _RESULT_TTL, _FAILURE_TTL = 3_600, 3_600, 14 * 86_400
_DESCRIPTION, _ARGUMENT, _NAMED = 160, 120, 2_000
_UNSAFE = str.maketrans({"<": "‹", ">": "›", "&": "+", '"': "”", "'": "’"})
_UNLIKE_ID = re.compile(r"[^A-Za-z0-9]")
_JSON_STARTS: Final = frozenset(b'{["-0123456789tfn \t\r\n')


class JSONSerializer:
    """RQ's serializer for our jobs: JSON and nothing else, so that no forged job makes us run a pickle."""

    @staticmethod
    def dumps(value: Any, /) -> bytes:
        """As compact JSON."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def loads(data: bytes | str, /) -> Any:
        """Read JSON. Raises `ValueError` for anything else, a pickle above all."""
        raw = data.encode() if isinstance(data, str) else bytes(data)
        if raw[:1] == b"\x80" or (raw and raw[0] not in _JSON_STARTS):
            raise ValueError("not JSON (a pickle, perhaps, which is never read): made by a job without our serializer")
        return json.loads(raw)


def reconcile(text: str) -> NoReturn:
    """What a hint's job calls on paper; a fleet worker serves hints by itself and never gets here."""
    raise ConfigurationError(
        f"a plain RQ worker took a hint for {text}: it cannot reconcile. Start `setpoint worker` for this queue, and "
        "let plain RQ workers serve other queues. Nothing is lost: the refs stay due."
    )


def job_key(job_id: str) -> str:
    """Where RQ keeps a job."""
    return f"rq:job:{job_id}"


def queue_key(lane: str) -> str:
    """Where RQ keeps the ids of a queue's jobs, a list; also how the queue is called in `QUEUES_KEY`."""
    return f"rq:queue:{lane}"


def hint_id(lane: str, unique: str, number: int) -> str:
    """A hint's id, of letters, digits, `_` and `-` as RQ demands. `unique` is the process', letters and digits."""
    return f"{HINT_PREFIX}{_UNLIKE_ID.sub(_escaped, lane)}-{unique}-{number}"


def is_hint(job_id: str) -> bool:
    """Whether this is one of our hints, by its id."""
    return job_id.startswith(HINT_PREFIX)


def plain(text: str, limit: int) -> str:
    """Text that is safe on pages that escape nothing, `limit` characters at most."""
    safe = "".join(c if c.isprintable() else " " for c in text.translate(_UNSAFE))
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def hint_commands(
    hint: str, lane: str, refs: Sequence[str], backlog: int, oldest_due_us: int, now_us: int
) -> list[tuple[Any, ...]]:
    """The Redis commands that ring one hint, to be sent in this order in one pipeline; repeating them does no harm.

    `refs` is the head of what is due, `backlog` how many are due in all.
    """
    due = f"{to_datetime(oldest_due_us):%H:%M:%S}Z"
    count = max(backlog, len(refs))
    if count == 1 and refs:
        what = plain(refs[0], _ARGUMENT)
        description = f"reconcile {what} (due {due})"
    else:
        what = f"{count} refs"
        description = f"reconcile {what} (oldest due {due})"
    created = f"{to_datetime(now_us):%Y-%m-%dT%H:%M:%S.%fZ}"
    fields: Mapping[str, Any] = {
        "created_at": created,
        "enqueued_at": created,
        "data": zlib.compress(JSONSerializer.dumps([FUNCTION, None, [what], {}])),
        "description": plain(description, _DESCRIPTION),
        "origin": lane,
        "status": "queued",
        "timeout": _TIMEOUT,
        "ttl": HINT_TTL,
        "result_ttl": _RESULT_TTL,
        "failure_ttl": _FAILURE_TTL,
        "meta": JSONSerializer.dumps(_meta(lane, refs, count, oldest_due_us)),
        # RQ writes these for every job, and some of its readers expect them.
        "success_callback_name": "",
        "failure_callback_name": "",
        "stopped_callback_name": "",
        "started_at": "",
        "ended_at": "",
        "last_heartbeat": "",
        "worker_name": "",
        "group_id": "",
    }
    key = job_key(hint)
    return [
        ("HSET", key, *(part for pair in fields.items() for part in pair)),
        ("EXPIRE", key, HINT_TTL),
        ("RPUSH", queue_key(lane), hint),
    ]


def _meta(lane: str, refs: Sequence[str], count: int, oldest_due_us: int) -> dict[str, str | int]:
    due = to_datetime(oldest_due_us - oldest_due_us % SECOND_US).isoformat().replace("+00:00", "Z")
    meta: dict[str, str | int] = {
        "kind": plain(" ".join(sorted({kind_of(ref) for ref in refs})), _ARGUMENT),
        "lane": plain(lane, _ARGUMENT),
        "due": due,
    }
    if count == 1 and refs:
        meta["entity"] = plain(refs[0], 512)
    else:
        meta["count"] = count
        meta["entities"] = plain(" ".join(refs), _NAMED)
    return meta


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"_{byte:02x}" for byte in match[0].encode())
