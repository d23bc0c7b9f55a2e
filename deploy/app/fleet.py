"""The smallest fleet, so that compose.yaml runs as it is; put your application in its place."""

from typing import Literal

from setpoint import Context, Fleet, Managed, action

State = Literal["off", "on"]

fleet = Fleet.from_env()


@fleet.entity("lamp", initial="off")
class Lamp(Managed[State]):
    """A lamp that is switched by saying how it should be: `setpoint set lamp/1 on --wait`."""

    @action(when="off", goal="on")
    def light(self, ctx: Context) -> State:
        """Switch it on."""
        ctx.log.info("click")
        return "on"

    @action(when="on", goal="off")
    def put_out(self, ctx: Context) -> State:
        """Switch it off."""
        ctx.log.info("clack")
        return "off"
