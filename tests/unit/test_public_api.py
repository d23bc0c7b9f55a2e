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


def test_the_import_loads_nothing_but_the_errors() -> None:
    code = "import sys; before = set(sys.modules); import setpoint; after = set(sys.modules)\n"
    loaded = run(code + "print(*sorted(name for name in after - before if name.startswith('setpoint')))").split()
    assert loaded == ["setpoint", "setpoint.errors"]
    assert run(code + "print(after & {'asyncio', 'dataclasses', 'inspect', 'redis', 'rich', 'rq'})") == "set()"


def test_declaring_kinds_loads_neither_redis_nor_rq_nor_anything_slow() -> None:
    code = (
        "import sys; from setpoint import Fleet, Managed, Observed, Retry, action; Fleet('redis://nobody'); "
        "print(sorted({'asyncio', 'click', 'redis', 'rich', 'rq'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_a_name_is_looked_up_once() -> None:
    assert run("import setpoint; first = setpoint.Retry; print('Retry' in vars(setpoint))") == "True"


def test_the_rules_are_pure() -> None:
    modules = ", ".join(f"setpoint.{m}" for m in ("backoff", "outcome", "entity", "clock", "errors", "judge"))
    assert run(f"import sys, {modules}; print(sorted({{'rq','redis','click'}} & set(sys.modules)))") == "[]"


def test_the_runner_loads_neither_redis_nor_rq_and_its_names_are_all_there() -> None:
    from setpoint import runner
    from setpoint.runner import errors

    slow = "{'rq', 'redis', 'msgpack', 'click', 'setpoint.engine', 'setpoint.fleet'}"
    assert run(f"import sys, setpoint.runner; print(sorted({slow} & set(sys.modules)))") == "[]"
    assert all(hasattr(runner, name) for name in runner.__all__)
    assert set(errors.__all__) <= set(runner.__all__)
