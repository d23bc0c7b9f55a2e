"""The example driver keeps its connection through real restarts of a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from setpoint.runner import BadConfig, Status
from tests.conftest import NewServer

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "keepalive" / "driver.py"

pytestmark = pytest.mark.crash


def load() -> Any:
    spec = importlib.util.spec_from_file_location("keepalive_driver", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


async def until(service: Any, status: Status) -> None:
    async with asyncio.timeout(20):
        while service.status is not status:
            await service.wait_for_state_change(service.status)


@pytest.mark.parametrize("how", ["kill9", "stop"])
def test_the_driver_is_active_again_after_each_restart_of_its_server(new_server: NewServer, how: str) -> None:
    server = new_server()
    config = f'{{"url": "{server.url}"}}'.encode()

    async def main() -> None:
        driver = load().Driver()
        service = driver.service
        service.start(config)
        await until(service, Status.ACTIVE)
        for restarts in (1, 2):
            await asyncio.to_thread(getattr(server, how))
            await until(service, Status.LOADING)
            assert isinstance(service.state.err, Exception)
            with pytest.raises(BadConfig):
                service.configure(b'{"uri": "typo"}')  # refused; the working one goes on
            await asyncio.to_thread(server.start)
            await until(service, Status.ACTIVE)
            assert (driver.connections, service.state.err) == (restarts + 1, None)
        service.stop()
        await service.ended()
        beats = driver.beats
        assert beats > 0
        with server.client() as client:
            assert client.execute_command("CLIENT", "LIST").count("\n") <= 1  # ours alone: the driver has hung up

    asyncio.run(main())
