"""Fixtures that every test may use. All servers are real ones."""

from __future__ import annotations

import fnmatch
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
import redis
import trustme

from setpoint.embedded import find_binary
from tests.servers import SentinelServer, SentinelSetup, Server, TlsServer, free_port
from tests.tls_proxy import TlsProxy
from tests.waiting import wait_until

# ------------------------------------------------------------------------------------------------------------- servers


class NewServer(Protocol):
    """Type of the fixture `new_server`."""

    def __call__(self, **options: object) -> Server: ...


@pytest.fixture(scope="session")
def valkey_binary() -> Path:
    return find_binary()


@pytest.fixture(scope="session")
def redis_server(valkey_binary: Path) -> Iterator[Server]:
    """The server that tests share. Take `url` instead, unless the test leaves the server as it was."""
    server = Server(valkey_binary)
    server.start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def _first_configuration(redis_server: Server) -> dict[str, str]:
    with redis_server.client() as client:
        return dict(client.config_get("*"))


@pytest.fixture
def url(redis_server: Server, _first_configuration: dict[str, str]) -> str:
    """The shared server, empty, without scripts and configured as at its start: `unix:///…?db=0`."""
    with redis_server.client() as client:
        _make_clean(client, _first_configuration)
    return redis_server.url


@pytest.fixture
def tcp_url(url: str, redis_server: Server) -> str:
    """The server of `url`, over TCP."""
    return redis_server.tcp_url


def _make_clean(client: redis.Redis, configuration: dict[str, str]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        pipeline.flushall()
        pipeline.script_flush()
        pipeline.function_flush()
        pipeline.client_unpause()
        pipeline.execute_command("CONFIG RESETSTAT")
        pipeline.execute_command("ACL USERS")
        pipeline.config_get("*")
        *_, users, found = pipeline.execute()
    # Some are one setting under several names (slaveof, replicaof): set back whatever differs, one by one.
    for name, value in found.items():
        if configuration.get(name) != value:
            client.config_set(name, configuration[name])
    for user in users:
        if user != "default":
            client.acl_deluser(user)


@pytest.fixture
def new_server(valkey_binary: Path) -> Iterator[NewServer]:
    """Starts a private server: `new_server(appendonly="yes", maxmemory="3mb")`. For tests that harm their server."""
    servers: list[Server] = []

    def start(**options: object) -> Server:
        server = Server(valkey_binary, options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.destroy()


@pytest.fixture
def tls_server(redis_server: Server, url: str, tmp_path: Path) -> Iterator[TlsServer]:
    """The shared server, clean, behind TLS with a certificate for `localhost`; clients must show one of the same CA."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    ca, certificate, key = tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key"
    client_certificate = authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path(str(ca))
    client_certificate.cert_chain_pems[0].write_to_path(str(certificate))
    client_certificate.private_key_pem.write_to_path(str(key))

    proxy = TlsProxy(context, redis_server.socket)
    proxy.start()
    yield TlsServer(
        server=redis_server,
        host="localhost",
        port=proxy.port,
        ca=ca,
        certificate=certificate,
        key=key,
        url=f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={ca}&ssl_certfile={certificate}&ssl_keyfile={key}",
    )
    proxy.close()


@pytest.fixture
def sentinel_setup(valkey_binary: Path, new_server: NewServer) -> Iterator[SentinelSetup]:
    """A primary of its own and one Sentinel that watches it."""
    primary = new_server()
    sentinel = SentinelServer(valkey_binary, primary)
    try:
        sentinel.start()
        with sentinel.client() as client:
            wait_until(
                lambda: client.execute_command("SENTINEL MASTER", "mymaster")["flags"] == "master",
                what="the Sentinel to see its primary",
            )
        yield SentinelSetup(primary, sentinel, f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0")
    finally:
        sentinel.destroy()


@pytest.fixture
def cluster_server(new_server: NewServer) -> Server:
    """A Cluster of one node, which holds all slots."""
    # Left alone, the cluster's own port is ours + 10000, which may be past the last port.
    server = new_server(cluster_enabled="yes", cluster_port=free_port())
    with server.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(
            lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
            what="the Cluster to be ready",
        )
    return server


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test of this run uses."""
    return f"t{os.urandom(4).hex()}"


# --------------------------------------------------------------------------------------------------------- cleanliness


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """No test leaves a thread that would keep the process alive, nor a process of its own."""
    threads, processes = set(_threads()), set(_processes())
    yield
    _assert_gone(lambda: [thread for thread in _threads() if thread not in threads], "threads")
    _assert_gone(lambda: [process for process in _processes() if process not in processes], "child processes")


def _assert_gone(left: Callable[[], list[Any]], what: str) -> None:
    if left():
        wait_until(lambda: not left(), timeout=3, what=f"the end of {what} that the test left: {left()}")


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if not thread.daemon]


def _processes() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if not _is_python_service_or_dead(process)]


def _is_python_service_or_dead(process: psutil.Process) -> bool:
    """multiprocessing keeps its resource tracker and fork server for the life of the process."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return True
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True
    return "multiprocessing.resource_tracker" in command or "multiprocessing.forkserver" in command


# --------------------------------------------------------------------------------------------------------------- skips

_ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")
_skips: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skips[report.nodeid] = _reason(report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skips[report.nodeid] = _reason(report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and _forbidden_skips() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") == "true" and (forbidden := _forbidden_skips()):
        terminalreporter.section("skipped for a reason that tests/allowed_skips.txt does not list", red=True)
        for test, reason in forbidden.items():
            terminalreporter.line(f"{test}: {reason}")


def _forbidden_skips() -> dict[str, str]:
    lines = (line.strip() for line in _ALLOWED_SKIPS.read_text().splitlines())
    allowed = [line for line in lines if line and not line.startswith("#")]
    return {
        test: reason
        for test, reason in _skips.items()
        if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in allowed)
    }


def _reason(longrepr: object) -> str:
    text = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return text.removeprefix("Skipped: ")
