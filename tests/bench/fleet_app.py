"""The application that setpoint runs in the bench."""

from __future__ import annotations

import os
import time

from setpoint import Context, Fleet, Observed
from tests.bench.log import note

fleet = Fleet.from_env()
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "0"))


class _AtRest(Observed[str]):
    def state(self) -> str:
        return "on"

    def goal_state(self) -> str:
        return "on"


@fleet.entity("noop")
class Noop(_AtRest):
    """One action that does nothing but note that it ran."""

    def actions(self, state: str, goal: str) -> list[object]:
        return [self.run]

    def run(self, ctx: Context) -> None:
        note()


@fleet.entity("late")
class Late(_AtRest):
    """Notes how late it is against the due time in its id (`<n>@<seconds>`)."""

    def actions(self, state: str, goal: str) -> list[object]:
        return [self.run]

    def run(self, ctx: Context) -> None:
        note(float(self.id.partition("@")[2]))


@fleet.entity("slow")
class Slow(_AtRest):
    """The same with an action that waits for a millisecond."""

    def actions(self, state: str, goal: str) -> list[object]:
        return [self.run]

    def run(self, ctx: Context) -> None:
        note()
        time.sleep(0.001)
        ctx.enqueue(f"slow/{self.id}", after=0)


@fleet.entity("loop")
class Loop(_AtRest):
    """Has itself evaluated again, at once, until it is deleted."""

    def actions(self, state: str, goal: str) -> list[object]:
        return [self.run]

    def run(self, ctx: Context) -> None:
        note()
        ctx.enqueue(f"loop/{self.id}", after=0)
