"""An application that declares a kind twice: it cannot be imported."""

from __future__ import annotations

from typing import Literal

from setpoint import Fleet, Managed

fleet = Fleet.from_env()


@fleet.entity("door", initial="closed")
class Door(Managed[Literal["closed", "open"]]):
    pass


@fleet.entity("door", initial="shut")
class Gate(Managed[Literal["shut", "open"]]):
    pass
