"""The soak for a few seconds; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.soak import Soak

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_a_fleet_under_all_faults_together_loses_nothing_charges_nobody_and_settles(tmp_path: Path) -> None:
    soak = Soak(5, 557, tmp_path)
    try:
        soak.run()
    finally:
        print(soak.report())
    did = soak.done
    assert did["worker"]
    assert did["server"]
    assert did["stop"]
    assert did["takeovers"], "nobody was killed at work"
