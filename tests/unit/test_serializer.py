"""Payloads and labels."""

from __future__ import annotations

import contextlib
import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setpoint.errors import BadPayload
from setpoint.serializer import pack, pack_labels, unpack, unpack_labels

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",))),
    st.binary(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.timedeltas(),
    st.datetimes(timezones=st.just(UTC)),
)
VALUES = st.recursive(
    SCALARS | st.sets(st.integers(0, 99) | st.text("abc")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc") | st.integers(0, 9), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    assert unpack(pack(value)) == value


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Other(Enum):
    PAIR = (1, "x")


def test_tuples_come_back_as_lists_and_enum_members_as_their_values() -> None:
    packed = pack({"t": (1, (2,)), Colour.RED: [Colour.RED, Number.ONE, Other.PAIR], "f": frozenset({1})})
    assert unpack(packed) == {"t": [1, [2]], "red": ["red", 1, [1, "x"]], "f": {1}}


def test_zones_come_back_as_utc() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    back = unpack(pack(noon))
    assert back == noon
    assert back.utcoffset() == timedelta(0)


def test_equal_sets_are_equal_bytes() -> None:
    assert pack({"b", "a", "c"}) == pack({"c", "b", "a"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "value is of type object"),
        ({"a": [1, print]}, r"value\['a'\]\[1\] is of type builtin"),
        (datetime(2026, 1, 1), "without a time zone"),  # noqa: DTZ001
        (float("nan"), "nan"),
        ([float("-inf")], "-inf"),
        (1 << 64, "no form"),
        ("\ud800", "no form"),
        ({(1, 2): 3}, "keys"),
        ({None: 3}, "keys"),
        ("x" * 70_000, "limit"),
        (1j, "complex"),
    ],
)
def test_what_has_no_form_on_the_wire_is_refused_with_its_place(value: object, said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        pack(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadPayload, match="nested"):
        pack(value)


def test_the_limit_counts_packed_bytes() -> None:
    assert len(pack("x" * 30, limit=31)) == 31
    with pytest.raises(BadPayload, match="31"):
        pack("x" * 30, limit=30)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\x93\x01",
        pickle.dumps({"a": 1}),
        msgpack.packb(msgpack.ExtType(1, b"x")),
        msgpack.packb(msgpack.ExtType(2, b"x")),
        msgpack.packb(msgpack.ExtType(3, b"x")),
        msgpack.packb(msgpack.ExtType(4, b"\xff")),
        msgpack.packb(msgpack.ExtType(5, b"\xc1")),
        b"\x91" * 5000 + b"\x01",
    ],
)
def test_what_was_not_packed_is_refused(stored: bytes) -> None:
    with pytest.raises(BadPayload):
        unpack(stored)


def test_unknown_extensions_come_through() -> None:
    theirs = msgpack.ExtType(40, b"x")
    assert unpack(msgpack.packb([theirs])) == [theirs]
    assert unpack(pack([theirs])) == [theirs]
    with pytest.raises(BadPayload, match="not free"):
        pack(msgpack.ExtType(1, b"5"))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(stored: bytes) -> None:
    with contextlib.suppress(BadPayload):
        unpack(stored)


def test_labels_come_back_and_are_equal_bytes_in_any_order() -> None:
    assert unpack_labels(pack_labels({"b": "2", "a": "1"})) == {"a": "1", "b": "2"}
    assert pack_labels({"b": "2", "a": "1"}) == pack_labels({"a": "1", "b": "2"})
    assert unpack_labels(b"") == {}


@pytest.mark.parametrize(
    "labels",
    [{"a": 1}, {1: "a"}, [], {"a": "x" * 257}, {str(n): "" for n in range(65)}, {"a": "\ud800"}],
)
def test_labels_are_few_short_strings(labels: Any) -> None:
    with pytest.raises(BadPayload):
        pack_labels(labels)


def test_stored_labels_that_are_no_map_are_refused() -> None:
    with pytest.raises(BadPayload):
        unpack_labels(pack([1]))


def test_a_date_is_not_a_datetime() -> None:
    assert unpack(pack(date(2026, 1, 1))) == date(2026, 1, 1)
    assert unpack(pack(Decimal("1.10"))).as_tuple() == Decimal("1.10").as_tuple()
    assert isinstance(unpack(pack(UUID(int=1))), UUID)
