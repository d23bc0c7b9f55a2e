"""Every marked line of this is wrong."""

from typing import Literal

from setpoint.outcome import Again, Gone
from setpoint.registry import Context, Managed, Observed, action

HostState = Literal["serving", "drained"]


class Number(Managed[int]):  # wrong
    pass


class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    def drain(self, ctx: Context) -> HostState | Again:
        return "drianed"  # wrong

    @action(when="serving", goal="drained")  # wrong
    def count(self, ctx: Context) -> int:
        return 5

    @action(when=5, goal="drained")  # wrong
    def five(self) -> None: ...

    @action(goal="drained")  # wrong
    def half(self) -> None: ...

    def reached(self, state: int, goal: int) -> bool:  # wrong
        return True


class VM(Observed[HostState]):
    def state(self) -> str | Gone:  # wrong
        return "x"


def look(host: Host) -> bool:
    return host.goal == "drianed"  # wrong
