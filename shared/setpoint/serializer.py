"""How values of applications are stored: msgpack with a handful of further types. Nothing in it can name code.

Round trips keep None, bool, int (64 bits), float, str, bytes, list, dict, aware datetime (as UTC), timedelta, Decimal,
UUID, date and set. A tuple comes back as a list, an enum member as its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final, cast
from uuid import UUID

import msgpack as _untyped

from setpoint.errors import BadPayload

__all__ = ["PAYLOAD_LIMIT", "pack", "pack_labels", "unpack", "unpack_labels"]

PAYLOAD_LIMIT: Final = 65_536
"""Default for the size of a packed value; bytes."""

LABELS: Final = 64
LABEL_BYTES: Final = 256
DEPTH: Final = 64
"""Values may be nested so deep."""

msgpack: Any = _untyped  # it has no types of its own

_TIMEDELTA, _DECIMAL, _UUID, _DATE, _SET = 1, 2, 3, 4, 5
_USERS_FIRST: Final = 16
"""Extension codes from here on are the application's own, as `msgpack.ExtType`."""

_MICROSECOND: Final = timedelta(microseconds=1)


def pack(value: object, limit: int = PAYLOAD_LIMIT) -> bytes:
    """The value as bytes, at most `limit` of them.

    Raises `BadPayload`, saying where in the value the trouble is: a type without a form, a naive datetime, NaN or an
    infinity, an integer above 64 bits, text with lone surrogates, too deep, too large.
    """
    packed = _packb(_plain(value, "value", 0))
    if len(packed) > limit:
        raise BadPayload(
            f"the value takes {len(packed):,} bytes packed and the limit is {limit:,}: store a reference to it"
        )
    return packed


def unpack(stored: bytes) -> Any:
    """Read what `pack` wrote. Raises `BadPayload` for anything else."""
    try:
        return msgpack.unpackb(stored, timestamp=3, strict_map_key=False, ext_hook=_from_ext)
    except (ValueError, TypeError, OverflowError, InvalidOperation, msgpack.UnpackException) as error:
        raise BadPayload(f"stored value cannot be read: {type(error).__name__}: {error}") from error


def pack_labels(labels: Mapping[str, str]) -> bytes:
    """Labels as bytes, in order of their names. Raises `BadPayload`: strings only, 64 labels, 256 bytes each."""
    if not isinstance(labels, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadPayload(f"labels are a mapping of strings, not {type(labels).__name__}")
    if len(labels) > LABELS:
        raise BadPayload(f"an entity has at most {LABELS} labels, not {len(labels)}")
    for part in (*labels.keys(), *labels.values()):
        if not isinstance(part, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadPayload(f"labels are strings, not {part!r}")
        if len(part.encode("utf-8", "replace")) > LABEL_BYTES:
            raise BadPayload(f"a label has at most {LABEL_BYTES} bytes: {part[:40]!r}…")
    return _packb({str(name): str(labels[name]) for name in sorted(labels)})


def unpack_labels(stored: bytes) -> dict[str, str]:
    """Read what `pack_labels` wrote; empty is no labels. Raises `BadPayload`."""
    if not stored:
        return {}
    found = unpack(stored)
    if not isinstance(found, dict):
        raise BadPayload("stored labels cannot be read: not a map")
    return {str(name): str(value) for name, value in cast("dict[object, object]", found).items()}


def _packb(plain: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(plain, datetime=True, strict_types=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadPayload(f"the value has no form on the wire: {error}") from error
    return packed


def _plain(value: object, where: str, depth: int) -> object:
    """The same with every type that msgpack does not know replaced; `where` is the path to it."""
    if depth > DEPTH:
        raise BadPayload(f"the value is nested deeper than {DEPTH}, or contains itself")
    kind = type(value)
    if value is None or kind in {bool, int, str, bytes}:
        return value
    if kind is msgpack.ExtType:  # a tuple too, so before those
        return _theirs(value, where)
    match value:
        case Enum():
            return _plain(value.value, where, depth + 1)
        case float():
            if not math.isfinite(value):
                raise BadPayload(f"{where} is {value!r}, which is no number")
            return float(value)
        case Mapping():
            return _plain_map(cast("Mapping[object, object]", value), where, depth)
        case list() | tuple():
            items = cast("list[object]", value)
            return [_plain(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(items)]
        case _:
            return _plain_further(value, where, depth)


def _theirs(value: Any, where: str) -> object:
    if value.code < _USERS_FIRST:
        raise BadPayload(f"{where} has the extension code {value.code}: those below {_USERS_FIRST} are not free")
    return value


def _plain_map(value: Mapping[object, object], where: str, depth: int) -> dict[object, object]:
    made: dict[object, object] = {}
    for key, item in value.items():
        if isinstance(key, Enum):
            key = key.value
        if type(key) not in {str, int}:
            raise BadPayload(f"{where} has the key {key!r}: keys are strings or integers")
        made[key] = _plain(item, f"{where}[{key!r}]", depth + 1)
    return made


def _plain_further(value: object, where: str, depth: int) -> object:
    match value:
        case str():
            return str(value)
        case int():
            return int(value)
        case bytes() | bytearray():
            return bytes(value)
        case datetime():
            if value.utcoffset() is None:
                raise BadPayload(f"{where} is a datetime without a time zone")
            return value.astimezone(UTC)
        case date():
            return msgpack.ExtType(_DATE, value.isoformat().encode())
        case timedelta():
            return msgpack.ExtType(_TIMEDELTA, str(value // _MICROSECOND).encode())
        case Decimal():
            return msgpack.ExtType(_DECIMAL, str(value).encode())
        case UUID():
            return msgpack.ExtType(_UUID, value.bytes)
        case set() | frozenset():
            items = cast("frozenset[object]", value)
            packed = sorted(_packb(_plain(each, f"{where}{{…}}", depth + 1)) for each in items)
            return msgpack.ExtType(_SET, b"".join(packed))
        case _:
            raise BadPayload(f"{where} is of type {type(value).__qualname__}, which has no form on the wire")


def _from_ext(code: int, data: bytes) -> object:
    match code:
        case 1:
            return timedelta(microseconds=int(data))
        case 2:
            return Decimal(data.decode())
        case 3:
            return UUID(bytes=data)
        case 4:
            return date.fromisoformat(data.decode())
        case 5:
            unpacker = msgpack.Unpacker(timestamp=3, strict_map_key=False, ext_hook=_from_ext, use_list=False)
            unpacker.feed(data)
            members: set[object] = set(unpacker)
            return members
        case _:
            return msgpack.ExtType(code, data)
