"""`python -m setpoint.cli` is `setpoint`."""

from setpoint.cli import main

main()
