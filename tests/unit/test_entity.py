"""Refs."""

from __future__ import annotations

import pytest

from setpoint.entity import REF_BYTES, Ref, check_kind, kind_of
from setpoint.errors import BadRef


@pytest.mark.parametrize("text", ["host/web-7", "a/b/c", "task.mail/ü €", "h/ ", "h/" + "x" * (REF_BYTES - 2)])
def test_a_ref_reads_back_as_written(text: str) -> None:
    ref = Ref.of(text)
    assert str(ref) == text
    assert Ref.of(ref) == ref
    assert kind_of(text) == ref.kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "/x",
        "host/",
        "Host/x",
        "1host/x",
        "ho st/x",
        "höst/x",
        "h/a\nb",
        "h/a\x00",
        "h/\u2028",
        "h/\ud800",
        "h/" + "x" * REF_BYTES,
        "h" * 65 + "/x",
        None,
        5,
        b"host/x",
    ],
)
def test_what_is_no_ref_is_refused_in_a_few_words(text: object) -> None:
    with pytest.raises(BadRef) as caught:
        Ref.of(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["", "A", "x/y", "x y", None, "x\n"])
def test_what_cannot_name_a_kind_is_refused(name: object) -> None:
    with pytest.raises(BadRef):
        check_kind(name)
