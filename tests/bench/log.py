"""What every job of every peer does: append 24 bytes to a file in memory, so that measuring costs Redis nothing."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

RECORD = struct.Struct("<ddq")
_open: dict[int, int] = {}


def note(due: float = 0.0) -> None:
    """One execution: now, when it was due (0: at once), by which process."""
    pid = os.getpid()
    fd = _open.get(pid)
    if fd is None:
        fd = _open[pid] = os.open(os.environ["BENCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, RECORD.pack(time.time(), due, pid))


def read(path: Path) -> list[tuple[float, float]]:
    """(started, due) of every execution so far, in order of start."""
    data = path.read_bytes() if path.exists() else b""
    return sorted((started, due) for started, due, _ in RECORD.iter_unpack(data[: len(data) // 24 * 24]))


def count(path: Path) -> int:
    """How many executions so far."""
    return path.stat().st_size // 24 if path.exists() else 0
