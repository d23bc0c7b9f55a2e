"""Maps of services: ids, all or nothing, changes in order and without gaps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from setpoint.errors import UsageError
from setpoint.runner import (
    BadConfig,
    BadId,
    ChangeType,
    Immutable,
    Scope,
    Service,
    ServiceChange,
    ServiceExists,
    ServiceMap,
    ServiceNotFound,
    Status,
    WatchLagged,
    id_is_kind,
    id_is_required,
    id_is_uuid,
)
from setpoint.runner.service_map import KEPT
from tests.driving import drive, settle


async def apply(scope: Scope, config: Any) -> None:
    if config == "bad":
        raise ValueError


def factory(_: str, kind: str) -> Service[Any]:
    if kind == "unknown":
        raise KeyError(kind)
    return Service(apply)


def shown(change: ServiceChange) -> tuple[str, str, str | None, str | None]:
    old, new = change.old, change.new
    return change.type, change.id, None if old is None else old.status, None if new is None else new.status


def test_services_are_created_found_listed_and_deleted() -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        second = services.create("b", "driver", active=True, config=b"1")
        first = services.create("a", "driver", config=b"2")
        assert (second.state.status, first.state.status) == (Status.LOADING, Status.INACTIVE)
        assert first.state.config == b"2"
        assert services.get("a") is first
        assert services.get("c") is None
        assert services.list() == [first, second]
        await settle()
        services.delete("b")
        assert second.state.status is Status.INACTIVE
        services.delete("a")
        with pytest.raises(ServiceNotFound):
            services.delete("a")
        services.delete("a", allow_missing=True)
        assert services.list() == []

    drive(main)


def test_an_id_that_exists_is_a_conflict_and_the_old_service_goes_on() -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        old = services.create("a", "driver", active=True)
        with pytest.raises(ServiceExists, match="driver"):
            services.create("a", "other")
        assert services.get("a") is old
        assert old.state.active
        assert services.revision == 1
        services.delete("a")

    drive(main)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"id": "x", "kind": "unknown"}, KeyError),
        ({"id": "x", "kind": "driver", "config": b"{"}, BadConfig),
        ({"id": "x", "kind": "driver", "config": b"{", "active": True}, BadConfig),
        ({"id": None, "kind": "driver"}, BadId),
        ({"id": "", "kind": "driver"}, BadId),
        ({"id": 5, "kind": "driver"}, BadId),
    ],
)
def test_a_failed_creation_leaves_no_service_and_no_event(arguments: Any, error: type[Exception]) -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        with pytest.raises(error):
            services.create(**arguments)
        assert services.list() == []
        assert services.revision == 0

    drive(main)


def test_a_factory_that_makes_no_service_or_takes_the_id_itself_is_refused() -> None:
    def nested(id_: str, kind: str) -> Service[Any]:
        if kind == "outer":
            services.create(id_, "inner")
        return Service(apply)

    with pytest.raises(UsageError, match="no Service"):
        ServiceMap(lambda _, kind: 5).create("a", "k")  # type: ignore[arg-type, return-value]
    services = ServiceMap(nested)
    with pytest.raises(ServiceExists, match="inner"):
        services.create("a", "outer")


def test_ids_are_made_as_the_map_says() -> None:
    by_kind = ServiceMap(factory, id_function=id_is_kind)
    assert by_kind.create(None, "driver").id == "driver"
    with pytest.raises(BadId):
        by_kind.create(None, "driver")
    assert by_kind.create("other", "driver").id == "other"
    by_uuid = ServiceMap(factory, id_function=id_is_uuid)
    assert len({by_uuid.create(None, "driver").id for _ in range(20)}) == 20
    with pytest.raises(BadId, match="ten"):
        id_is_uuid("k", lambda _: True)
    with pytest.raises(BadId, match="'k'"):
        id_is_required("k", lambda _: False)


def test_a_map_of_fixed_services_cannot_be_changed_but_its_services_can() -> None:
    async def main() -> None:
        services = ServiceMap.of([Service(apply), Service(apply)])
        assert [(record.id, record.kind) for record in services.list()] == [("0", "Service"), ("1", "Service")]
        with pytest.raises(Immutable):
            services.create("x", "y")
        with pytest.raises(Immutable):
            services.delete("0")
        services.list()[0].service.start()
        assert services.revision == 3

    drive(main)


def test_a_watcher_begins_with_what_is_and_gets_every_change_in_order() -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        services.create("a", "driver")
        watch = services.watch()
        seen: list[ServiceChange] = []

        async def follow() -> None:
            async for change in services.watch():
                seen.append(change)  # noqa: PERF401  # it never ends

        task = asyncio.create_task(follow())
        await settle()
        record = services.create("b", "driver", active=True, config=b'"bad"')
        await settle()
        record.service.start(b"1")
        await settle()
        services.delete("b")
        record.service.configure  # noqa: B018
        services.delete("a")
        await settle()
        assert [shown(change) for change in seen] == [
            ("add", "a", None, "inactive"),
            ("add", "b", None, "loading"),
            ("update", "b", "loading", "error"),
            ("update", "b", "error", "error"),
            ("update", "b", "error", "loading"),
            ("update", "b", "loading", "active"),
            ("update", "b", "active", "inactive"),
            ("remove", "b", "inactive", None),
            ("remove", "a", "inactive", None),
        ]
        assert [change.revision for change in seen] == [1, *range(2, 10)]
        # A slow one, and one that comes back with the revision it saw last, see the same.
        assert [(await anext(watch)).revision for _ in range(9)] == [1, *range(2, 10)]
        again = services.watch(after=4)
        assert [await anext(again) for _ in range(5)] == seen[4:]
        with pytest.raises(UsageError):
            services.watch(after=99)
        task.cancel()

    drive(main)


def test_a_watcher_that_stands_still_costs_bounded_memory_blocks_nobody_and_is_told() -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        record = services.create("a", "driver")
        slow = services.watch()
        assert (await anext(slow)).type is ChangeType.ADD
        for _ in range(KEPT):
            record.service.start()
            record.service.stop()
        with pytest.raises(WatchLagged, match=str(KEPT)) as caught:
            await anext(slow)
        assert caught.value.missed == KEPT
        assert (await anext(slow)).revision == KEPT + 2
        assert (await anext(services.watch())).revision == services.revision == 2 * KEPT + 1

    drive(main)


def test_one_watcher_that_leaves_disturbs_no_other() -> None:
    async def main() -> None:
        services = ServiceMap(factory)
        first, second = (asyncio.ensure_future(anext(services.watch())) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        services.create("a", "driver")
        assert (await second).id == "a"

    drive(main)
