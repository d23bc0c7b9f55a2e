"""`setpoint worker`: one worker, or several under a supervisor."""

from __future__ import annotations

import os
import sys
from typing import Literal

import click

__all__ = ["worker"]


@click.command()
@click.option("-n", "--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Workers to run.")
@click.option("--lanes", default="", help="Serve only these, separated by commas. Default: all of the application.")
@click.option("--app", envvar="SETPOINT_APP", required=True, help="The application, module:fleet (SETPOINT_APP).")
@click.option("--slots", type=click.IntRange(1, 10_000), default=4, show_default=True, help="Evaluations at once.")
@click.option("--grace", default=None, help="Time to end what runs after SIGTERM, such as 30s.")
@click.option("--isolation", type=click.Choice(["process", "none"]), default="process", show_default=True,
              help="none: run actions in the worker itself; for development.")  # fmt: skip
@click.option("--redis-url", default=None, help="Where the truth is kept (SETPOINT_REDIS_URL).")
@click.option("--namespace", default=None, help="Which fleet (SETPOINT_NAMESPACE).")
@click.option("--max-items", type=click.IntRange(0), default=0, help="Replace the child after so many evaluations.")
@click.option("--max-memory", type=click.IntRange(0), default=0, help="Replace the child when it has more MiB.")
@click.pass_context
def worker(
    context: click.Context,
    *,
    processes: int,
    lanes: str,
    app: str,
    slots: int,
    grace: str | None,
    isolation: Literal["process", "none"],
    redis_url: str | None,
    namespace: str | None,
    max_items: int,
    max_memory: int,
) -> None:
    """Evaluate what is due.

    The first SIGTERM lets running evaluations end within the grace time, the second ends at once; what was not finished
    is handed back. Exits with 2 if the application does not import.

    \b
    setpoint worker --app myapp.fleet:fleet -n 4
    """
    from setpoint.engine.connect import connect
    from setpoint.entity import check_lane
    from setpoint.errors import ConfigurationError, UsageError
    from setpoint.settings import Settings
    from setpoint_workers import run

    chosen = tuple(lane.strip() for lane in lanes.split(",") if lane.strip())
    try:
        settings = Settings.from_env(redis_url=redis_url, namespace=namespace, grace=grace, app=app)
        if not settings.redis_url:
            raise ConfigurationError("no Redis is configured: give --redis-url or set SETPOINT_REDIS_URL")
        for url in {settings.redis_url, settings.hints_url}:
            connect(url, role="worker").close()  # told here, or a supervisor would start its workers again and again
        for lane in chosen:
            check_lane(lane)
    except (ConfigurationError, UsageError) as error:
        raise click.UsageError(str(error)) from error
    if processes > 1:
        context.exit(_supervise(processes, settings.grace_us / 1e6))
    context.exit(
        run(
            settings,
            app,
            lanes=chosen,
            slots=slots,
            isolation=isolation,
            max_items=max_items,
            max_memory=max_memory << 20,
        )
    )


def _supervise(processes: int, grace: float) -> int:
    from setpoint.supervisor import Program, Supervisor, catch_signals

    argv = [sys.executable, "-m", "setpoint_workers.cli", *_without_count(sys.argv[1:])]
    programs = [Program(f"worker-{i + 1}", argv, grace=grace + 5.0) for i in range(processes)]

    def sink(name: str, line: str) -> None:
        click.echo(f"{name} | {line}", err=True)

    with catch_signals() as signals:
        supervisor = Supervisor(programs, sink)
        supervisor.start()
        signals.on_second(supervisor.hurry)
        while not signals.wait(0.2) and supervisor.failed is None:
            pass
        supervisor.stop()
    return 2 if supervisor.failed is not None else 0


def _without_count(arguments: list[str]) -> list[str]:
    """The same command line for a single worker; `-n` comes again, later, and the last one counts."""
    if arguments[:1] == ["worker"]:
        arguments = arguments[1:]
    return [*arguments, "-n", "1"]


if __name__ == "__main__":
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    worker(prog_name="setpoint worker")
