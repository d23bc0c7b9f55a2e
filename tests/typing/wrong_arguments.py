"""Every line of this that is marked wrong is, and no other."""

from setpoint import Action, Again, Backoff, Context, Fleet, Ref, Retry

fleet = Fleet(namespace=5)  # wrong

Retry(attempts="5")  # wrong
Retry(backoff="10s")  # wrong
Retry(never=ValueError)  # wrong
Retry(never=("ValueError",))  # wrong
Retry(reset="never")  # wrong
Retry(tries=5)  # wrong

Backoff(None)  # wrong
Backoff("1s", factor="2")  # wrong
Backoff("1s", "1m", 2.0)  # wrong
Backoff.linear(step=[1])  # wrong
Backoff().factor = 3.0  # wrong

Again(None)  # wrong
Again(after=object())  # wrong
Action.of(5)  # wrong

fleet.entity("vm", lane=None)  # wrong
fleet.entity("vm", retry=5)  # wrong
fleet.entity("vm", cap="10")  # wrong
fleet.entity("vm", rate=100)  # wrong
fleet.entity("vm", after_success="rest")  # wrong
fleet.entity("vm", resinc="1h")  # wrong

fleet.set("host/1", 5)  # wrong
fleet.set("host/1", None)  # wrong
fleet.set("host/1")  # wrong
fleet.set(("host", "1"), "drained")  # wrong
fleet.set("host/1", "drained", labels={"rack": 1})  # wrong
fleet.set("host/1", "drained", if_revision="3")  # wrong
fleet.set_many({"host/1": 5})  # wrong
fleet.set_many(["host/1"])  # wrong

fleet.enqueue(None)  # wrong
fleet.enqueue(5)  # wrong
fleet.enqueue("vm/1", at=None)  # wrong
fleet.enqueue("vm/1", at="noon")  # wrong
fleet.enqueue("vm/1", after=None)  # wrong
fleet.enqueue("vm/1", 5)  # wrong
fleet.enqueue(Ref("vm"))  # wrong
fleet.enqueue_many(["vm/1"])  # wrong
fleet.enqueue_many([("vm/1", None)])  # wrong
fleet.reschedule("vm/1", at=None)  # wrong

fleet.wait("vm/1", None)  # wrong
fleet.pause("fleet", until=None)  # wrong
fleet.pause("fleet", for_=None)  # wrong
fleet.ls(place="somewhere")  # wrong
fleet.delete(7)  # wrong
print(fleet.get("vm/1").sate)  # wrong
fleet.explain("vm/1").place = "due"  # wrong


def act(ctx: Context) -> None:
    ctx.enqueue("vm/1", at=None)  # wrong
    ctx.enqueue("vm/1", after=None)  # wrong
    ctx.progress("half")  # wrong
    ctx.fence = 3  # wrong


async def later() -> None:
    fleet.aio.enqueue("vm/1")  # wrong
    await fleet.aio.enqueue("vm/1", at=None)  # wrong
    await fleet.aio.set("host/1", 5)  # wrong
