"""An application whose actions return what they may not."""

from __future__ import annotations

from typing import Any, Literal

from setpoint import Context, Fleet, Managed, Observed, Retry, action

fleet = Fleet.from_env()
once = Retry(attempts=1)


@fleet.entity("door", initial="closed", retry=once)
class Door(Managed[Literal["closed", "open"]]):
    @action(when="closed", goal="open")
    def open(self, ctx: Context) -> Any:
        return {"ajar": 0, "number": 7, "thing": object(), "yes": True}.get(ctx.id, "ajar")


@fleet.entity("tap", retry=once)
class Tap(Observed[str]):
    def state(self) -> Any:
        return 3

    def goal_state(self) -> str:
        return "shut"

    def actions(self, state: str, goal: str) -> list[Any]:
        return []


@fleet.entity("lamp", retry=once)
class Lamp(Observed[str]):
    def state(self) -> str:
        return "off"

    def goal_state(self) -> str:
        return "on"

    def actions(self, state: str, goal: str) -> list[Any]:
        return [self.burn]

    def burn(self, ctx: Context) -> Any:
        return self.later()

    async def later(self) -> None:
        pass
