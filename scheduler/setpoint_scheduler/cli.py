"""`setpoint scheduler`."""

from __future__ import annotations

import click

from setpoint.errors import ConfigurationError
from setpoint.settings import Settings

__all__ = ["scheduler"]


@click.command()
@click.option("--redis-url", envvar="SETPOINT_REDIS_URL", help="Where the truth is kept.")
@click.option("--namespace", envvar="SETPOINT_NAMESPACE", help="Which fleet in that Redis.")
def scheduler(redis_url: str | None, namespace: str | None) -> None:
    """Run a scheduler: it rings workers for what is due and takes over from those that died.

    Run two for safety; any number may. It needs none of your code.

    \b
    setpoint scheduler --redis-url redis://127.0.0.1:6379
    """
    from setpoint import logs
    from setpoint_scheduler import run

    try:
        settings = Settings.from_env(redis_url=redis_url, namespace=namespace)
        logs.configure(settings.log_format, settings.log_level)
        run(settings)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
