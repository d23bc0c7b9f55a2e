"""Every line of this is right."""

from collections.abc import Sequence
from typing import Literal

from setpoint.outcome import Again, Gone
from setpoint.registry import ActionLike, Context, Managed, Observed, action

HostState = Literal["serving", "drained"]


class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    async def drain(self, ctx: Context) -> HostState | Again:
        return Again("5s") if ctx.cancelled else "drained"

    @action(when=("serving", "drained"), goal="serving", timeout="5s")
    def serve(self) -> None:
        return None

    def reached(self, state: HostState, goal: HostState) -> bool:
        return state == goal or goal == "serving"


class VM(Observed[HostState]):
    async def state(self) -> HostState | Gone:
        return Gone()

    def goal_state(self) -> HostState:
        return "drained"

    def actions(self, state: HostState, goal: HostState) -> Sequence[ActionLike]:
        return [self.boot, self.wait]

    def boot(self, ctx: Context) -> None: ...

    async def wait(self) -> None: ...
