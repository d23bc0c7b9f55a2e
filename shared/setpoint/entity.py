"""What a ref is: the name `kind/id` of anything durable with a due time. Not what is known of the entity."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from setpoint.errors import BadRef, UsageError

REF_BYTES = 512
"""A ref may not be longer, in bytes of UTF-8: it is a member of sorted sets and part of keys."""

_KIND = re.compile(r"[a-z][a-z0-9_.-]{0,63}", re.ASCII)
_LANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Ref(NamedTuple):
    """The name of an entity: its kind and its id within the kind."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"

    @classmethod
    def of(cls, text: object) -> Self:
        """Read `kind/id`; the id may itself contain slashes.

        Raises `BadRef`, saying what is wrong with it.
        """
        if isinstance(text, cls):
            text = str(text)
        if not isinstance(text, str):
            raise BadRef(f"a ref is a string `kind/id`, not {type(text).__name__}")
        kind, slash, id_ = text.partition("/")
        if not slash:
            raise BadRef(f"{text[:80]!r} is not a ref: write `kind/id`, for example host/web-7")
        check_kind(kind)
        if not id_:
            raise BadRef(f"{text[:80]!r} has no id: write `kind/id`, for example {kind}/web-7")
        if _CONTROL.search(id_):
            raise BadRef(f"{text[:80]!r} has control characters in its id")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise BadRef(f"{text[:80]!r} is not valid Unicode: it has lone surrogates") from None
        if size > REF_BYTES:
            raise BadRef(f"a ref has at most {REF_BYTES} bytes; {text[:40]!r}… has {size}")
        return cls(kind, id_)


def check_kind(name: object) -> str:
    """Return `name` if it can name a kind; raise `BadRef` if not."""
    if not isinstance(name, str) or not _KIND.fullmatch(name):
        raise BadRef(
            f"{name!r} cannot name a kind: lower-case letters, digits, '_', '.', '-', 64 at most, a letter first"
        )
    return name


def check_lane(name: object) -> str:
    """Return `name` if it can name a lane; raise `UsageError` if not."""
    if not isinstance(name, str) or not _LANE.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a lane: letters, digits, '_', '.', '-', 64 at most")
    return name


def kind_of(ref: str) -> str:
    """The kind of a ref that is known to be valid."""
    return ref.partition("/")[0]
