"""Prometheus metrics of a fleet, read from Redis when they are asked for, and the small server that shows them.

One exporter tells of the whole fleet. Its cost and the number of its series depend on how many kinds, lanes, actions
and outcomes there are, never on how many entities. Counters are fields of the hash `counters`, named in `counters.py`
and written by settle.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from setpoint.counters import LE, TAKEOVERS, sum_field
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import FAR_US

if TYPE_CHECKING:
    from socketserver import BaseServer
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import Metric

    from setpoint.engine.door import Door

__all__ = [
    "DEFAULT_PORT",
    "Exporter",
    "FleetCollector",
    "serve",
]

DEFAULT_PORT: Final = 9464

BUDGET = 1.0
"""Seconds a scrape waits for Redis before it says that it is down."""

FRESH = 2.0
"""Seconds for which one reading serves all scrapes."""

_LOOKED_AT = 512
"""Parked refs, over all kinds, whose reason is read; the rest count as `unread`."""

_PLACES: Final = ("due", "lease", "idle", "parked")
_PARKED_FOR: Final = ("failed", "poison", "paused", "other", "unread")
_WORKER_STATES: Final = ("starting", "idle", "busy", "draining", "live", "lost")

_log = logging.getLogger(__name__)

# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(slots=True)
class _Kind:
    lane: str
    known: bool
    places: dict[str, int] = field(default_factory=dict[str, int])
    overdue: int = 0
    oldest_us: int = 0
    parked: list[bytes] = field(default_factory=list[bytes])
    reasons: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class _Reading:
    kinds: dict[str, _Kind]
    workers: dict[str, int]
    hints: dict[str, int]
    counters: dict[str, int]


def _read(door: Door) -> _Reading:
    """Three round trips at most, whatever the size of the fleet."""
    keys = door.keys
    (seconds, micros), skew, kinds_hash, alive, infos, counts = door.read(
        ("TIME",),
        ("HGET", keys.meta, "skew"),
        ("HGETALL", keys.kinds),
        ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
        ("HGETALL", keys.worker),
        ("HGETALL", keys.counters),
    )
    now = int(seconds) * 1_000_000 + int(micros) + int(skew or 0)
    scores = _scores(alive)
    known = _mapping(infos)
    live = {worker for worker, until in scores.items() if until > now}
    kinds = _kinds(_mapping(kinds_hash), live, known)
    share = _LOOKED_AT // max(1, len(kinds))
    hints = _read_places(door, kinds, now, share)
    _read_reasons(door, kinds)
    return _Reading(kinds, _workers(scores, live, known), hints, _counters(_mapping(counts)))


def _read_places(door: Door, kinds: Mapping[str, _Kind], now: int, share: int) -> dict[str, int]:
    keys = door.keys
    lanes = sorted({kind.lane for kind in kinds.values()})
    commands: list[tuple[Any, ...]] = []
    for name in kinds:
        due = keys.due(name)
        commands += (
            ("ZCARD", due),
            ("ZCARD", keys.lease(name)),
            ("ZCARD", keys.idle(name)),
            ("ZCARD", keys.parked(name)),
            ("ZCOUNT", due, "-inf", now),
            ("ZRANGE", due, 0, 0, "WITHSCORES"),
            ("ZREVRANGE", keys.parked(name), 0, share - 1) if share else ("ZREVRANGE", keys.parked(name), 1, 0),
        )
    commands += [("ZCARD", keys.hints(lane)) for lane in lanes]
    if not commands:
        return {}
    replies = iter(door.read(*commands))
    for kind in kinds.values():
        kind.places = {place: int(next(replies)) for place in _PLACES}
        kind.overdue = int(next(replies))
        oldest = list(_scores(next(replies)).values())
        kind.oldest_us = max(0, now - oldest[0]) if oldest else 0
        kind.parked = next(replies)
    return {lane: int(next(replies)) for lane in lanes}


def _read_reasons(door: Door, kinds: Mapping[str, _Kind]) -> None:
    asked = [kind for kind in kinds.values() if kind.parked]
    replies = door.read(*(("HMGET", door.keys.trouble, *kind.parked) for kind in asked)) if asked else []
    for kind in kinds.values():
        kind.reasons = dict.fromkeys(_PARKED_FOR, 0)
    for kind, troubles in zip(asked, replies, strict=True):
        for trouble in troubles:
            kind.reasons[_reason(trouble)] += 1
        kind.reasons["unread"] = max(0, kind.places["parked"] - len(kind.parked))


def _reason(trouble: bytes | None) -> str:
    try:
        reason = Trouble.unpack(trouble or b"").reason
    except (ValueError, UnicodeDecodeError):
        return "other"
    return "other" if reason == "-" else reason


def _kinds(stored: Mapping[bytes, bytes], live: set[bytes], infos: Mapping[bytes, bytes]) -> dict[str, _Kind]:
    also = {kind for worker in live for kind in _names(_unpacked(infos.get(worker)).get("kinds"))}
    found: dict[str, _Kind] = {}
    for name, value in sorted(stored.items()):
        publisher, _, policy = value.partition(b"|")
        kind = name.decode()
        lane = _unpacked(policy).get("lane")
        known = publisher.partition(b" ")[2] in live or kind in also
        found[kind] = _Kind(lane if isinstance(lane, str) else "default", known)
    return found


def _names(value: Any) -> Iterable[str]:
    names: Iterable[Any] = cast("Iterable[Any]", value) if isinstance(value, list | tuple | dict) else ()
    return [str(each) for each in names]


def _workers(scores: Mapping[bytes, int], live: set[bytes], infos: Mapping[bytes, bytes]) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(_WORKER_STATES, 0)
    for worker in scores:
        state = str(_unpacked(infos.get(worker)).get("state", "live")) if worker in live else "lost"
        counts[state if state in counts else "live"] += 1
    return counts


def _counters(stored: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(errors="replace"): int(value) for name, value in stored.items()}


def _unpacked(stored: bytes | None) -> dict[str, Any]:
    import msgpack

    try:
        found = cast("object", msgpack.unpackb(stored or b"\x80", strict_map_key=False))
    except (ValueError, msgpack.UnpackException):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _mapping(reply: Any) -> Mapping[bytes, bytes]:
    if isinstance(reply, Mapping):
        return cast("Mapping[bytes, bytes]", reply)
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _scores(reply: Sequence[Any]) -> dict[bytes, int]:
    """Of WITHSCORES, whichever way the client hands it on."""
    pairs = reply if reply and isinstance(reply[0], list | tuple) else list(zip(reply[::2], reply[1::2], strict=True))
    return {member: int(min(float(score), FAR_US)) for member, score in pairs}


# ------------------------------------------------------------------------------------------------------------- showing


class _Family:
    """Shapes of all metrics, made anew for each scrape: name, help, labels."""

    def __init__(self) -> None:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        self.all: list[Metric] = []

        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            self.all.append(made := GaugeMetricFamily(f"setpoint_{name}", text, labels=labels))
            return made

        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            self.all.append(made := CounterMetricFamily(f"setpoint_{name}", text, labels=labels))
            return made

        def histogram(name: str, text: str, *labels: str) -> HistogramMetricFamily:
            self.all.append(made := HistogramMetricFamily(f"setpoint_{name}", text, labels=labels))
            return made

        self.up = gauge("up", "1 if this scrape is complete.")
        self.redis_up = gauge("redis_up", "1 if Redis answered in time.")
        self.build = gauge("build_info", "Always 1; what runs here.", "version", "namespace")
        self.entities = gauge("entities", "Entities known, by where they are.", "kind", "place")
        self.overdue = gauge("overdue", "Entities due by now that nobody evaluates yet.", "kind")
        self.oldest = gauge("oldest_overdue_seconds", "How long the first of them has been due.", "kind")
        self.parked = gauge("parked", "Entities that wait for a person, by reason.", "kind", "reason")
        self.dead = gauge("dead", "Entities given up: parked, and not by a pause.", "kind")
        self.unknown = gauge("unknown_kinds", "1 if no live worker knows the kind.", "kind")
        self.leases = gauge("leases", "Evaluations in flight.")
        self.backlog = gauge("backlog", "Entities due by now in the lane.", "lane")
        self.hints = gauge("hints", "RQ jobs rung for the lane and not yet answered.", "lane")
        self.workers = gauge("workers", "Workers, by state; lost ones have not said goodbye.", "state")
        self.evaluations = counter("evaluations", "Evaluations ended, by outcome.", "kind", "outcome")
        self.actions = counter("actions", "Runs of actions ended, by outcome.", "kind", "action", "outcome")
        self.retries = counter("retries", "Failures to be tried again, by failures in a row.", "kind", "try")
        self.takeovers = counter("takeovers", "Leases that ran out and were taken back.")
        self.duration = histogram("action_duration_seconds", "How long actions ran.", "kind", "action", "outcome")
        self.wait = histogram("wait_seconds", "From due to started; deliberate delay is not counted.", "kind")


def _show(reading: _Reading, out: _Family) -> None:
    backlog: dict[str, int] = dict.fromkeys(reading.hints, 0)
    for name, kind in reading.kinds.items():
        for place, count in kind.places.items():
            out.entities.add_metric([name, "leased" if place == "lease" else place], count)
        out.overdue.add_metric([name], kind.overdue)
        out.oldest.add_metric([name], kind.oldest_us / 1e6)
        for reason, count in kind.reasons.items():
            out.parked.add_metric([name, reason], count)
        out.dead.add_metric([name], kind.places["parked"] - kind.reasons["paused"])
        out.unknown.add_metric([name], 0 if kind.known else 1)
        backlog[kind.lane] += kind.overdue
    out.leases.add_metric([], sum(kind.places["lease"] for kind in reading.kinds.values()))
    for lane, count in backlog.items():
        out.backlog.add_metric([lane], count)
        out.hints.add_metric([lane], reading.hints[lane])
    for state, count in reading.workers.items():
        out.workers.add_metric([state], count)
    _show_counters(reading.counters, out)


def _show_counters(counters: Mapping[str, int], out: _Family) -> None:
    plain = {"evaluations": out.evaluations, "retries": out.retries}
    histograms = {"duration": (out.duration, 3), "wait": (out.wait, 1)}
    buckets: dict[tuple[str, ...], dict[str, int]] = defaultdict(dict)
    for name, count in sorted(counters.items()):
        what, *labels = name.split("|")
        if what in plain and len(labels) == 2:
            plain[what].add_metric(labels, count)
        elif what in histograms and len(labels) == histograms[what][1] + 1 and labels[-1] in LE:
            buckets[what, *labels[:-1]][labels[-1]] = count
    out.takeovers.add_metric([], counters.get(TAKEOVERS, 0))
    for (what, *labels), counts in buckets.items():
        total, so_far = 0, list[tuple[str, float]]()
        for le in LE:
            total += counts.get(le, 0)
            so_far.append((le, total))
        sum_us = counters.get(sum_field(what, *labels), 0)
        histograms[what][0].add_metric(labels, buckets=so_far, sum_value=sum_us / 1e6)
        if what == "duration":
            out.actions.add_metric(labels, total)


class FleetCollector:
    """Collects a fleet's metrics for prometheus-client's registries.

    `door` makes a door of this namespace when one is needed; give it `patience=1`. A scrape never fails: it says
    `setpoint_up 0`, and if Redis is the reason `setpoint_redis_up 0`, and leaves out the rest.
    """

    def __init__(self, door: Callable[[], Door], namespace: str, *, fresh: float = FRESH) -> None:
        self._make, self._namespace, self._fresh = door, namespace, fresh
        self._door: Door | None = None
        self._lock = threading.Lock()
        self._running: _Attempt | None = None
        self._last: tuple[float, _Attempt] | None = None

    def describe(self) -> Iterable[Metric]:
        """The shapes, without asking Redis."""
        return _Family().all

    def collect(self) -> Iterable[Metric]:
        """One scrape."""
        out = _Family()
        out.build.add_metric([_version(), self._namespace], 1)
        attempt = self._attempt()
        reading = attempt.reading if attempt is not None else None
        complete = False
        if reading is not None:
            try:
                _show(reading, out)
                complete = True
            except (ValueError, KeyError, TypeError):
                _log.exception("metrics could not be made of what Redis holds", extra={"event": "metrics.broken"})
        out.up.add_metric([], int(complete))
        out.redis_up.add_metric([], int(attempt is not None and attempt.answered))
        return out.all

    def ready(self) -> bool:
        """Whether Redis answers."""
        attempt = self._attempt()
        return attempt is not None and attempt.answered

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            door, self._door, self._last = self._door, None, None
        if door is not None:
            door.close()

    def _attempt(self) -> _Attempt | None:
        """The reading of the last `fresh` seconds, or a new one; None if it did not come within the budget."""
        with self._lock:
            if self._last is not None and monotonic() - self._last[0] < self._fresh:
                return self._last[1]
            attempt = self._running
            if attempt is None:
                attempt = self._running = _Attempt()
                # A thread, because a server that is frozen holds the socket for longer than a scrape may take.
                threading.Thread(target=self._fetch, args=(attempt,), name="metrics", daemon=True).start()
        return attempt if attempt.ended.wait(BUDGET) else None

    def _fetch(self, attempt: _Attempt) -> None:
        from setpoint.errors import RedisUnavailable

        door = self._door
        try:
            if door is None:
                door = self._make()
            attempt.reading = _read(door)
            attempt.answered = True
        except RedisUnavailable as error:
            _log.warning("no metrics: %s", error, extra={"event": "metrics.redis_down"})
        except Exception as error:  # noqa: BLE001  whatever it is, the scrape must say so and go on
            attempt.answered = not isinstance(error, OSError)
            _log.warning("no metrics: %s", error, exc_info=True, extra={"event": "metrics.broken"})
        with self._lock:
            self._door, self._running = door, None
            self._last = (monotonic(), attempt)
        attempt.ended.set()


class _Attempt:
    """One reading under way."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.reading: _Reading | None = None
        self.answered = False


def _version() -> str:
    try:
        return version("setpoint")
    except PackageNotFoundError:
        return "unknown"


# ------------------------------------------------------------------------------------------------------------- serving


class Exporter:
    """A running server of `/metrics`, `/livez` (it runs) and `/readyz` (Redis answers)."""

    def __init__(self, server: BaseServer, thread: threading.Thread, collector: FleetCollector) -> None:
        self._server, self._thread, self._collector = server, thread, collector
        self.host, self.port = cast("tuple[str, int]", server.server_address)[:2]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._collector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(
    bind: str = "127.0.0.1", port: int = DEFAULT_PORT, *, door: Callable[[], Door], namespace: str, fresh: float = FRESH
) -> Exporter:
    """Serve the metrics of one fleet from threads of this process, to this machine only unless `bind` says otherwise.

    Port 0 takes a free one. Raises OSError if it cannot listen there.
    """
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from prometheus_client import CollectorRegistry, exposition

    collector = FleetCollector(door, namespace, fresh=fresh)
    registry = CollectorRegistry()
    registry.register(collector)
    metrics = cast("Callable[..., Iterable[bytes]]", cast("Any", exposition).make_wsgi_app(registry))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/livez":
            status, text = "200 OK", "ok"
        elif path == "/readyz":
            status, text = ("200 OK", "ok") if collector.ready() else ("503 Service Unavailable", "Redis is away")
        else:
            status, text = "404 Not Found", "/metrics, /livez, /readyz"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
        return [text.encode() + b"\n"]

    class Handler(WSGIRequestHandler):
        timeout = 10

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Scrapes are not worth a line."""

    class Server(exposition.ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET

        def server_bind(self) -> None:
            """Without asking the name server who we are, as http.server does."""
            from socketserver import TCPServer

            TCPServer.server_bind(self)
            self.server_name, self.server_port = bind, self.server_address[1]
            self.setup_environ()

    server: WSGIServer = make_server(bind, port, app, Server, Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="exporter", daemon=True)
    thread.start()
    return Exporter(server, thread, collector)
