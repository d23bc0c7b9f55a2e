"""A driver that keeps a connection to a Valkey server, and survives the server's restarts.

    python docs/examples/keepalive/driver.py '{"url": "redis://127.0.0.1:6379"}'

It is a `Service`: its configuration says which server, `apply` connects, and a background task watches the connection.
When the server goes away the task fails, the service notes it and applies its configuration again, with growing delays.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import dataclass

import redis.asyncio

from setpoint.clock import sleep_us
from setpoint.runner import AbortRetry, Scope, Service, ServiceRetry


@dataclass(frozen=True)
class DriverConfig:
    """What the driver is told."""

    url: str
    every: float = 0.05
    """Seconds between looks at the connection."""

    @classmethod
    def parse(cls, config: bytes) -> DriverConfig:
        """From JSON. Raises what a service calls `BadConfig`."""
        return cls(**json.loads(config))


class Driver:
    """Holds one connection, and counts how often it had to be made."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self.connections = 0
        self.beats = 0
        self.service = Service(
            self.apply,
            parser=DriverConfig.parse,
            retry=ServiceRetry(initial="50ms", min="50ms", max="5s"),
            timeout="5s",
            log=log,
        )

    async def apply(self, scope: Scope, config: DriverConfig) -> None:
        """Connect; what is entered and spawned here ends with the next configuration, a failure or the stop."""
        client = await scope.enter_async_context(redis.asyncio.Redis.from_url(config.url, socket_timeout=2))
        try:
            await client.ping()
        except redis.AuthenticationError as error:
            raise AbortRetry(error) from error  # no retry mends a wrong password
        self.connections += 1

        async def watch() -> None:
            while True:
                await client.incr("driver:beats")
                self.beats += 1
                await sleep_us(round(config.every * 1_000_000))

        scope.spawn(watch)


async def main(config: str) -> None:
    """Run until interrupted, and say how it goes."""
    driver = Driver(logging.getLogger("driver"))
    driver.service.start(config.encode())
    async for state in driver.service.changes():
        logging.getLogger("driver").info("%s, connection %d", state.status, driver.connections)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1]))
