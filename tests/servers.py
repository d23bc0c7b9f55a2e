"""Real servers for tests: each a process of its own, over a Unix socket and a TCP port of 127.0.0.1."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.waiting import wait_until


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One real server. It keeps its directory and addresses when it is killed and started again."""

    def __init__(self, binary: Path, options: Mapping[str, object] | None = None) -> None:
        """`options` as in the server's configuration, `_` for `-`: `maxmemory="3mb", appendonly="yes"`."""
        self._binary = binary
        self._options = dict(options or {})
        # Not pytest's tmp_path: a socket's path may have 103 bytes.
        self.dir = Path(tempfile.mkdtemp(prefix="sp-"))
        self.socket = self.dir / "s.sock"
        self.port = free_port()
        self.url = f"unix://{self.socket}?db=0"
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        path = self.dir / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """A new client; close it (or use it as a context manager). Answers are text unless `decode_responses=False`."""
        return redis.Redis(**{"unix_socket_path": str(self.socket), "decode_responses": True, "protocol": 2, **options})

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "it runs already"
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "unixsocketperm": 700,
            "dir": self.dir,
            "logfile": self.dir / "log",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "enable-debug-command": "yes",
            **{name.replace("_", "-"): value for name, value in self._options.items()},
        }
        self._process = subprocess.Popen(self._command(options), stdin=subprocess.DEVNULL, start_new_session=True)
        wait_until(self._answers, what=f"the server to answer; its log: {self.log}")

    def kill9(self) -> None:
        """As a crash of the machine would: no goodbye, nothing flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly stop, with the data written. Stopping twice is fine."""
        if self._process is not None:
            self.resume()
            self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop it if it runs, and start it on what it had written."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: it accepts connections and answers nothing."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def destroy(self) -> None:
        """End it and remove its data."""
        if self._process is not None:
            self.kill9()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _command(self, options: Mapping[str, object]) -> list[str]:
        return [str(self._binary), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def _answers(self) -> bool:
        assert self._running().poll() is None, f"the server ended while starting: {self.log}"
        try:
            with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5, protocol=2) as client:
                return bool(client.ping())
        except redis.ConnectionError:  # not listening yet, or loading
            return False

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not running"
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process = self._running()
        process.send_signal(how)
        process.wait(30)
        self._process = None


class SentinelServer(Server):
    """A Sentinel that watches one primary under the name `mymaster`."""

    def __init__(self, binary: Path, primary: Server, *, down_after_ms: int = 1000) -> None:
        super().__init__(binary)
        # A Sentinel rewrites its configuration, so it must have a file.
        self._file = self.dir / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nunixsocket {self.socket}\ndir {self.dir}\nlogfile {self.dir}/log\n"
            f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
            f"sentinel down-after-milliseconds mymaster {down_after_ms}\n"
            "sentinel failover-timeout mymaster 3000\n"
        )

    def _command(self, options: Mapping[str, object]) -> list[str]:
        return [str(self._binary), str(self._file), "--sentinel"]


@dataclass(frozen=True, slots=True)
class SentinelSetup:
    """A primary and the one Sentinel (quorum 1) that watches it."""

    primary: Server
    sentinel: SentinelServer
    #: `redis+sentinel://…`
    url: str


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server behind TLS that asks for a client certificate."""

    server: Server
    host: str
    port: int
    ca: Path
    #: A client's certificate and key, in one file each.
    certificate: Path
    key: Path
    #: `rediss://…` with everything that a client needs.
    url: str
