"""Every line of this that is marked wrong is, and no other."""

from collections.abc import Sequence
from typing import Literal

from setpoint import ActionLike, Again, Context, Gone, Managed, Observed, action

HostState = Literal["serving", "drained"]


class Number(Managed[int]):  # wrong
    pass


class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    def drain(self, ctx: Context) -> HostState | Again:
        return "drianed"  # wrong

    @action(when="serving", goal="drained")
    def pause(self, ctx: Context) -> HostState | Again:
        return Again()  # wrong

    @action(when="serving", goal="drained")  # wrong
    def count(self, ctx: Context) -> int:
        return 5

    @action(when="serving", goal="drained")  # wrong
    async def count_later(self, ctx: Context) -> int:
        return 5

    @action(when=5, goal="drained")  # wrong
    def five(self) -> None: ...

    @action(when=["serving", "drained"], goal="drained")  # wrong
    def listed(self) -> None: ...

    @action(goal="drained")  # wrong
    def half(self) -> None: ...

    @action("serving", "drained")  # wrong
    def by_position(self) -> None: ...

    @action(when="serving", goal=None)  # wrong
    def nowhere(self) -> None: ...

    @action(when="serving", goal="drained", timeout=[1])  # wrong
    def slow(self) -> None: ...

    def reached(self, state: int, goal: int) -> bool:  # wrong
        return True


class VM(Observed[HostState]):
    def state(self) -> str | Gone:  # wrong
        return "x"

    def goal_state(self) -> Gone:  # wrong
        return Gone()


class Disk(Observed[HostState]):
    async def state(self) -> HostState | None:  # wrong
        return None

    def goal_state(self) -> HostState:
        return "up"  # wrong

    def actions(self, state: HostState, goal: HostState) -> Sequence[ActionLike]:
        return ["boot"]  # wrong


def look(host: Host, vm: VM) -> bool:
    host.state = "gone"  # wrong
    return host.goal == "drianed"  # wrong


def length(vm: VM) -> int:
    return len(vm.goal)  # wrong
