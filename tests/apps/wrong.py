"""An application whose actions return what they must not: whatever data they were given."""

from __future__ import annotations

from typing import Any, Literal

from setpoint import Fleet, Managed, Observed, Retry, action

fleet = Fleet.from_env()
once = Retry(attempts=1)
RETURNS: dict[str, Any] = {
    "number": 5,
    "true": True,
    "bytes": b"drained",
    "list": ["drained"],
    "empty": "",
    "unknown": "drianed",
    "class": str,
    "error": ValueError("returned, not raised"),
}


@fleet.entity("host", initial="serving", retry=once)
class Host(Managed[Literal["serving", "drained"]]):
    """Returns what its id names."""

    @action(when="serving", goal="drained")
    def drain(self) -> Any:
        return RETURNS[self.id]


@fleet.entity("asked", initial="serving", retry=once)
class Asked(Managed[Literal["serving", "drained"]]):
    """The same, as a coroutine."""

    @action(when="serving", goal="drained")
    async def drain(self) -> Any:
        return RETURNS[self.id]


@fleet.entity("seen", remember=True, retry=once)
class Seen(Observed[str]):
    """Its hooks return what its id names."""

    def state(self) -> Any:
        return RETURNS[self.id]

    def goal_state(self) -> str:
        return "up"

    def actions(self, state: str, goal: str) -> list[Any]:
        return []
