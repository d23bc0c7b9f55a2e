"""An application that declares a kind twice."""

from __future__ import annotations

from setpoint import Fleet, Managed

fleet = Fleet.from_env()


@fleet.entity("host", initial="up")
class Host(Managed[str]):
    """The first."""


@fleet.entity("host", initial="down")
class Other(Managed[str]):
    """The second."""
