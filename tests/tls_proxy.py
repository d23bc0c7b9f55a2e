"""TLS in front of a server that was built without it: real TLS for the client, plain bytes behind."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import suppress
from pathlib import Path


class TlsProxy:
    """Listens on a port of 127.0.0.1 (`port`) and hands every connection on to a Unix socket."""

    def __init__(self, context: ssl.SSLContext, target: Path) -> None:
        self._context = context
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tls-proxy")
        self.port = 0

    def start(self) -> None:
        """Return when it listens."""
        self._thread.start()
        assert self._ready.wait(10), "the TLS proxy did not start"

    def close(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # A refused handshake is what some tests are about; not worth a line in the log.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            asyncio.set_event_loop(None)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        carriers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carriers:
            task.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)

    async def _carry(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(str(self._target))
        try:
            await asyncio.gather(_copy(client_reader, server_writer), _copy(server_reader, client_writer))
        finally:
            for writer in (server_writer, client_writer):
                writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    # One side has gone: end the other too.
    writer.close()
