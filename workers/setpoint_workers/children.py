"""The runner children of one worker: starting, talking, ending. What their results mean is the worker's business."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from setpoint_workers.frames import BadFrame, Frame, FrameReader, pack_frame

if TYPE_CHECKING:
    from setpoint_workers.worker import Held

INDEXES: Final = 65_536
FREE: Final = 0
STARTED: Final = 1

Role = Literal["main", "quarantine", "successor"]
Start = Callable[[socket.socket, mmap.mmap], threading.Thread]

_READ = 1 << 20
_BUFFER = 1 << 20


class Child:
    """One runner child and what it holds. The socket never blocks the worker: what does not fit waits in `outbox`."""

    def __init__(self, role: Role, app: str, slots: int, *, in_thread: Start | None = None) -> None:
        """Start it; it says `ready` by itself. Call from the main thread: it dies with the thread that made it."""
        self.role: Role = role
        self.slots = slots
        self.ready = False
        self.draining = False
        self.dead = False
        self.born = monotonic()
        self.idle_since = self.born
        self.done = 0
        self.items: dict[int, Held] = {}
        self.started: dict[int, float] = {}
        self.overdue: set[int] = set()
        self.lost: set[int] = set()
        self.told: set[int] = set()
        self.killed = False
        self.sent_at = 0.0
        self.recalled = False
        self.outbox = bytearray()
        self._reader = FrameReader()
        self._free = list(range(INDEXES - 1, -1, -1))
        self._thread: threading.Thread | None = None
        self.process: subprocess.Popen[bytes] | None = None

        memory = _shared_file()
        self.shared = mmap.mmap(memory, INDEXES)
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.sock = ours
        if in_thread is not None:
            os.close(memory)
            self._thread = in_thread(theirs, self.shared)
        else:
            try:
                self.process = _spawn(app, slots, theirs.fileno(), memory)
            finally:
                theirs.close()
                os.close(memory)
        ours.setblocking(False)
        self.fd = ours.fileno()

    @property
    def pid(self) -> int:
        """Of the process; 0 if it is a thread."""
        return self.process.pid if self.process is not None else 0

    def take(self, held: Held) -> int:
        """A slot of the shared memory for one more item."""
        index = self._free.pop()
        self.shared[index] = FREE
        self.items[index] = held
        return index

    def drop(self, index: int) -> Held | None:
        """The item is no longer here."""
        held = self.items.pop(index, None)
        if held is not None:
            self._free.append(index)
            if self.started:
                self.started.pop(index, None)
            if self.lost or self.told or self.overdue:
                self.lost.discard(index)
                self.told.discard(index)
                self.overdue.discard(index)
        return held

    def send(self, frame: Frame) -> None:
        """Send as much as goes at once and keep the rest. A broken pipe shows when reading."""
        self.outbox += pack_frame(frame)
        self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if not self.outbox:
            return
        try:
            sent = self.sock.send(self.outbox)
        except BlockingIOError:
            return
        except OSError:
            self.outbox.clear()
            return
        del self.outbox[:sent]

    def receive(self) -> list[Frame] | None:
        """Frames that are complete; None when the child is gone (or talks nonsense, which is the same)."""
        try:
            data = self.sock.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        try:
            return self._reader.feed(data)
        except BadFrame:
            return None

    def is_started(self, index: int) -> bool:
        """It had begun with this item and has not ended it."""
        return self.shared[index] == STARTED

    def kill(self) -> None:
        """End its whole session, now."""
        self.killed = True
        if self.process is None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            return
        if self.process.poll() is None:
            self._kill_session()

    def reap(self) -> str:
        """Make sure it has ended, with all of its session, and say how in words."""
        self.dead = True
        if self.process is None:
            self.sock.close()
            if self._thread is not None:
                self._thread.join(0.2)
            return "its thread ended"
        self._kill_session()
        code = self.process.wait()
        self.sock.close()
        return how_it_ended(code)

    def _kill_session(self) -> None:
        assert self.process is not None
        # The group outlives its leader as long as anything of it runs; the pid is ours until we have waited.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def rss(self) -> int:
        """Bytes of memory it has; 0 where that is not known."""
        try:
            with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _spawn(app: str, slots: int, sock: int, memory: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "setpoint_workers.child", "--fd", str(sock), "--shm", str(memory)]
    command += ["--app", app, "--slots", str(slots), "--parent", str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(sock, memory), start_new_session=True)


def _shared_file() -> int:
    create: Any = getattr(os, "memfd_create", None)
    if create is not None:
        fd = int(create("setpoint"))
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, INDEXES)
    return fd


class Respawn:
    """When the next child may be started: at once, then later and later while children keep dying young."""

    __slots__ = ("_deaths", "at")

    YOUNG = 10.0
    LONGEST = 10.0

    def __init__(self) -> None:
        self.at = 0.0
        self._deaths = 0

    def died(self, born: float, done: int) -> None:
        """A child has died that was started at `born` and had finished `done` items."""
        now = monotonic()
        self._deaths = 1 if done or now - born > self.YOUNG else self._deaths + 1
        self.at = now if self._deaths == 1 else now + min(0.05 * 2**self._deaths, self.LONGEST)
