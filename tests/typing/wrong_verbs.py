"""Every marked line of this is wrong."""

from datetime import timedelta
from typing import Literal

from setpoint import Again, Backoff, Context, Fleet, Gone, Managed, Observed, Retry, action

HostState = Literal["serving", "drained"]
fleet = Fleet("redis://127.0.0.1:1", unknown_kind="accept")

fleet.enqueue("host/1", at=None)  # wrong
fleet.enqueue("host/1", after=timedelta(seconds=5))
fleet.enqueue(5)  # wrong
fleet.enqueue_many(["host/1"])  # wrong
fleet.set("host/1", 5)  # wrong
fleet.set("host/1", "drained", labels={"rack": 1})  # wrong
fleet.set("host/1", "drained", if_revision="3")  # wrong
fleet.wait("host/1", None)  # wrong
fleet.delete(None)  # wrong
Retry(attempts="3")  # wrong
Retry(never=ValueError)  # wrong
Retry(reset="never")  # wrong
Backoff(None)  # wrong
Again(None)  # wrong


@fleet.entity("host", initial="serving", timeout=b"60s")  # wrong
class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    async def drain(self, ctx: Context) -> HostState | Again:
        return Again(after=[5])  # wrong


class VM(Observed[HostState]):
    def state(self) -> HostState | Gone:
        return "lost"  # wrong

    def goal_state(self) -> HostState:
        return "drianed"  # wrong


async def later() -> None:
    await fleet.aio.enqueue("host/1", at=None)  # wrong
    await fleet.aio.set("host/1", 5)  # wrong
