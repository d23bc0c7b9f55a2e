"""Every line of this is right."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from setpoint import Action, ActionLike, Again, Backoff, Context, Fleet, Gone, Managed, Observed, Ref, Retry, action

HostState = Literal["serving", "drained"]

fleet = Fleet("redis://localhost:6379/0", namespace="shop", patience="5s")


@fleet.entity(
    "host",
    initial="serving",
    retry=Retry(attempts=5, backoff=Backoff("1s", "1m", factor=1.5, jitter=0), never=(KeyError, ValueError)),
    timeout=None,
    rate="100/1m",
    cap=10,
)
class Host(Managed[HostState]):
    @action(when="serving", goal="drained")
    async def drain(self, ctx: Context) -> HostState | Again:
        ctx.enqueue("vm/1", after="5s")
        ctx.progress(1, 2, "half")
        return Again("5s") if ctx.cancelled else "drained"

    @action(when=("serving", "drained"), goal="serving", timeout="5s")
    def serve(self) -> None:
        return None

    def reached(self, state: HostState, goal: HostState) -> bool:
        return state == goal or goal == "serving"


@fleet.entity("vm", rate=(10, timedelta(seconds=1)), resync="1h", retry=Retry(backoff=Backoff.linear("10s")))
class VM(Observed[HostState]):
    async def state(self) -> HostState | Gone:
        return Gone()

    def goal_state(self) -> HostState:
        return "drained"

    def actions(self, state: HostState, goal: HostState) -> Sequence[ActionLike]:
        return [self.boot, self.wait, Action.of(self.boot, name="again", timeout="5s")]

    def boot(self, ctx: Context) -> None: ...

    async def wait(self) -> None: ...


def client() -> None:
    fleet.set("host/1", "drained", data={"why": [1, None]}, labels={"rack": "r1"}, if_revision=3)
    fleet.set_many({"host/1": "drained"})
    fleet.set_many([(Ref("host", "1"), "drained")])
    fleet.enqueue("vm/1", at=datetime(2030, 1, 1, tzinfo=UTC))
    fleet.enqueue(Ref.of("vm/1"), after=1.5)
    fleet.enqueue_many([("vm/1", "5s"), ("vm/2", 0), ("vm/3", datetime(2030, 1, 1, tzinfo=UTC))])
    fleet.pause("lane:slow", why="moving", for_="1h")
    due: datetime | None = fleet.get("vm/1").due
    said: Sequence[str] = fleet.explain("vm/1").why
    print(due, said)


async def async_client() -> None:
    await fleet.aio.enqueue("vm/1", after=timedelta(seconds=1))
    await fleet.aio.set("host/1", "drained")
