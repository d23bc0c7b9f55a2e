"""What Prometheus reads, from a real server, read back with prometheus-client's own parser."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from time import monotonic

import msgpack
import pytest
from prometheus_client.parser import text_string_to_metric_families

from setpoint import metrics
from setpoint.counters import bucket_fields, evaluation_field, retry_field, sum_field
from setpoint.engine.door import Door
from setpoint.engine.records import Trouble
from setpoint.engine.scripts import ClaimKind, When
from setpoint.metrics import Exporter, serve
from tests.conftest import NewServer
from tests.waiting import wait_until

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def door(url: str, namespace: str) -> Iterator[Door]:
    with Door(url, namespace, role="test") as door:
        yield door


@pytest.fixture
def exporter(url: str, namespace: str) -> Iterator[Exporter]:
    with serve(
        port=0, door=lambda: Door(url, namespace, role="exporter", patience=1), namespace=namespace, fresh=0
    ) as it:
        yield it


def get(exporter: Exporter, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(exporter: Exporter) -> Series:
    status, text = get(exporter, "/metrics")
    assert status == 200
    found: Series = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix("setpoint_"), tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


def register(door: Door, worker: str = "w1", state: str = "busy", ttl_us: int = 60_000_000) -> None:
    policy = msgpack.packb({"lane": "slow"})
    door.run(
        door.scripts.register(
            worker, born_us=1, ttl_us=ttl_us, info=msgpack.packb({"state": state}), kinds={"host": policy, "b": policy}
        )
    )


def test_an_empty_fleet(exporter: Exporter) -> None:
    series = scrape(exporter)
    assert value(series, "up") == 1
    assert value(series, "redis_up") == 1
    assert value(series, "leases") == 0
    assert value(series, "takeovers_total") == 0
    assert value(series, "workers", state="busy") == 0
    assert any(name == "build_info" for name, _ in series)


def test_places_and_times(door: Door, exporter: Exporter) -> None:
    register(door)
    now = door.now_us()
    door.run(door.scripts.enqueue([("host/a", When.at(now - 90_000_000)), ("host/b", When.at(now - 1_000_000))]))
    door.run(door.scripts.enqueue([("host/c", When.after(3_600_000_000)), ("b/x", When.at(now - 5_000_000))]))
    door.run(door.scripts.claim("w1", [ClaimKind("b", "slow")], lane="slow", lease_us=60_000_000, lead_us=0, limit=1))
    for ref in ("host/p1", "host/p2"):
        door.run(door.scripts.enqueue([(ref, When.after(0))]))
        door.run(door.scripts.park(ref, text="why"))
    door.read(
        ("ZADD", door.keys.parked("host"), now, "host/f"),
        ("HSET", door.keys.trouble, "host/f", Trouble(failures=3, reason="failed").pack()),
    )
    series = scrape(exporter)
    places = {
        place: value(series, "entities", kind="host", place=place) for place in ("due", "leased", "idle", "parked")
    }
    assert places == {"due": 3, "leased": 0, "idle": 0, "parked": 3}
    assert value(series, "overdue", kind="host") == 2
    assert 89 < value(series, "oldest_overdue_seconds", kind="host") < 200
    assert value(series, "oldest_overdue_seconds", kind="b") == 0
    assert value(series, "backlog", lane="slow") == 2
    assert value(series, "leases") == 1
    assert value(series, "dead", kind="host") == 1
    assert value(series, "parked", kind="host", reason="paused") == 2
    assert value(series, "parked", kind="host", reason="failed") == 1
    assert value(series, "workers", state="busy") == 1
    assert value(series, "unknown_kinds", kind="host") == 0


def test_a_kind_whose_workers_are_gone_is_unknown(door: Door, exporter: Exporter) -> None:
    register(door, ttl_us=0)
    series = scrape(exporter)
    assert value(series, "unknown_kinds", kind="host") == 1
    assert value(series, "workers", state="lost") == 1


def test_counters_and_histograms(door: Door, exporter: Exporter) -> None:
    counts = {
        evaluation_field("host", "reached"): 5,
        retry_field("host", 4): 1,
        bucket_fields("duration", "host", "drain", "failed")[0]: 1,
        bucket_fields("duration", "host", "drain", "failed")[1]: 2,
        bucket_fields("duration", "host", "drain", "failed")[-1]: 4,
        sum_field("duration", "host", "drain", "failed"): 2_500_000,
        bucket_fields("wait", "host")[0]: 1,
        "takeovers": 7,
        "of|somebody|else": 1,
    }
    door.read(("HSET", door.keys.counters, *(part for pair in counts.items() for part in pair)))
    series = scrape(exporter)
    assert value(series, "evaluations_total", kind="host", outcome="reached") == 5
    drain = {"kind": "host", "action": "drain", "outcome": "failed"}
    assert value(series, "actions_total", **drain) == 7
    assert value(series, "retries_total", kind="host", **{"try": "5"}) == 1
    assert value(series, "takeovers_total") == 7
    buckets = [
        value(series, "action_duration_seconds_bucket", **drain, le=le) for le in ("0.001", "0.003", "600", "+Inf")
    ]
    assert buckets == [1, 3, 3, 7]
    assert value(series, "action_duration_seconds_count", **drain) == 7
    assert value(series, "action_duration_seconds_sum", **drain) == 2.5
    assert value(series, "wait_seconds_count", kind="host") == 1


def test_series_do_not_grow_with_entities_or_workers(door: Door, exporter: Exporter) -> None:
    register(door)
    door.run(door.scripts.enqueue([("host/0", When.after(0))]))
    few = scrape(exporter)
    for n in range(8):
        door.run(door.scripts.enqueue([(f"host/{n}-{i}", When.after(0)) for i in range(250)]))
        register(door, f"other-{n}")
    many = scrape(exporter)
    assert few.keys() == many.keys()
    assert value(many, "overdue", kind="host") == 2001
    assert value(many, "workers", state="busy") == 9


def test_reading_stays_at_few_round_trips_for_many_parked(door: Door, exporter: Exporter) -> None:
    register(door)
    door.read(("ZADD", door.keys.parked("host"), *(part for n in range(3000) for part in (n, f"host/{n}"))))
    series = scrape(exporter)
    assert value(series, "dead", kind="host") == 3000
    assert value(series, "parked", kind="host", reason="unread") > 2000


def test_what_cannot_be_read_is_told_and_does_not_break_the_scrape(door: Door, exporter: Exporter) -> None:
    door.read(("HSET", door.keys.counters, "evaluations|a|b", "many"))
    series = scrape(exporter)
    assert value(series, "up") == 0
    assert value(series, "redis_up") == 1


@pytest.mark.crash
def test_probes_and_scrapes_while_redis_is_frozen_or_gone(new_server: NewServer) -> None:
    server = new_server()
    with serve(
        port=0, door=lambda: Door(server.url, "n", role="exporter", patience=1), namespace="n", fresh=0
    ) as exporter:
        assert get(exporter, "/readyz")[0] == 200
        server.pause()
        began = monotonic()
        series = scrape(exporter)
        assert monotonic() - began < 3 * metrics.BUDGET
        assert (value(series, "up"), value(series, "redis_up")) == (0, 0)
        assert get(exporter, "/livez") == (200, "ok\n")
        assert get(exporter, "/readyz")[0] == 503
        server.resume()
        wait_until(lambda: get(exporter, "/readyz")[0] == 200, what="the exporter to be ready again", timeout=20)
        server.kill9()
        assert get(exporter, "/readyz")[0] == 503
        server.start()
        wait_until(lambda: value(scrape(exporter), "up") == 1, what="complete scrapes again", timeout=20)


def test_other_paths(exporter: Exporter) -> None:
    assert get(exporter, "/")[0] == 404
