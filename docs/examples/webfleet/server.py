"""One web site: a real HTTP server for one folder, which knows how to drain.

    python server.py HOME NAME

It puts itself into the background; the command returns once it answers. Its files in HOME: `NAME.lock`, locked as long
as the process lives and naming it; `NAME.json`, its process and port; `NAME/`, the folder it shows. `GET /healthz`
tells how it is; `POST /drain` makes it finish what it has and take nothing new; `POST /undrain` is the way back.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Site(ThreadingHTTPServer):
    """Counts the visitors whose connections are open."""

    daemon_threads = True

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name = name
        self.draining = False
        self.visitors = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), partial(Visit, directory=str(folder)))

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", int(self.socket.getsockname()[1])

    def health(self) -> dict[str, object]:
        """What /healthz says."""
        return {"name": self.name, "pid": os.getpid(), "draining": self.draining, "visitors": self.visitors}


class Visit(SimpleHTTPRequestHandler):
    """One connection. It counts as a visitor from its first request for a page until it is closed."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Site
    counted = False

    def do_GET(self) -> None:
        """A page, or how the server is."""
        if self.path == "/healthz":
            self.answer(200, self.server.health())
            return
        with self.server.lock:
            refused = self.server.draining and not self.counted
            if not refused and not self.counted:
                self.counted = True
                self.server.visitors += 1
        if refused:
            self.close_connection = True
            self.answer(503, {"error": "this site is being drained"})
            return
        super().do_GET()
        if self.server.draining:
            self.close_connection = True

    def do_POST(self) -> None:
        """Drain, or take visitors again."""
        if self.path not in {"/drain", "/undrain"}:
            self.answer(404, {"error": "POST /drain or /undrain"})
            return
        with self.server.lock:
            self.server.draining = self.path == "/drain"
        self.answer(200, self.server.health())

    def answer(self, status: int, body: dict[str, object]) -> None:
        """Answer with JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def finish(self) -> None:
        """The connection ends, and with it the visit."""
        if self.counted:
            with self.server.lock:
                self.server.visitors -= 1
        super().finish()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def last_port(home: Path, name: str) -> int:
    """The port it had before, so that a site keeps its address; 0 if there was none."""
    try:
        return int(json.loads((home / f"{name}.json").read_text())["port"])
    except (OSError, ValueError, KeyError):
        return 0


def listen(home: Path, name: str) -> Site:
    """Listen where it did before, or on a port of the system's choice."""
    folder = home / name
    folder.mkdir(exist_ok=True)
    page = folder / "index.html"
    if not page.exists():
        page.write_text(f"<!doctype html><title>{name}</title><h1>This is {name}</h1>\n")
    try:
        return Site(name, folder, last_port(home, name))
    except OSError:
        return Site(name, folder, 0)


def main() -> int:
    """Start; 0 once it answers, or if it runs already."""
    home, name = Path(sys.argv[1]), sys.argv[2]
    lock = (home / f"{name}.lock").open("ab")  # the system lets go of it when the process ends, however it ends
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    site = listen(home, name)
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.ftruncate(lock.fileno(), 0)
    os.write(lock.fileno(), str(os.getpid()).encode())  # so that whoever finds it locked knows by whom
    fresh = home / f"{name}.json.new"
    fresh.write_text(json.dumps({"pid": os.getpid(), "port": site.server_port}))
    fresh.replace(home / f"{name}.json")
    os.write(tell, b"!")
    os.close(tell)
    site.serve_forever(poll_interval=3600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
