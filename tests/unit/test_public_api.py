"""What `import setpoint` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import setpoint


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_all_is_sorted_and_every_name_of_it_is_there() -> None:
    # As ruff sorts: constants, classes, functions.
    assert list(setpoint.__all__) == sorted(setpoint.__all__, key=lambda n: (not n[0].isupper(), n))
    assert len(set(setpoint.__all__)) == len(setpoint.__all__)
    for name in setpoint.__all__:
        assert getattr(setpoint, name) is not None, name
    assert dir(setpoint) == list(setpoint.__all__)


def test_every_error_is_public() -> None:
    from setpoint import errors

    assert set(errors.__all__) <= set(setpoint.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(setpoint, "Fleeet")


def test_the_import_loads_neither_redis_nor_rq_nor_anything_slow() -> None:
    slow = {"rq", "redis", "rich", "click", "msgpack", "asyncio", "json", "setpoint.fleet"}
    assert slow.isdisjoint(run("import sys, setpoint; print(*sys.modules)").split())


def test_the_rules_are_pure() -> None:
    modules = ", ".join(f"setpoint.{m}" for m in ("backoff", "outcome", "entity", "clock", "errors", "judge"))
    assert run(f"import sys, {modules}; print(sorted({{'rq','redis','click'}} & set(sys.modules)))") == "[]"
