"""One factory for every way to reach Redis."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import redis
import redis.asyncio

from setpoint.engine.connect import connect, connect_async, mask
from setpoint.errors import ConfigurationError
from tests.servers import SentinelSetup, Server, TlsServer, free_port
from tests.waiting import wait_until


def _names(server: Server) -> set[str]:
    with server.client() as client:
        return {str(entry["name"]) for entry in client.client_list()}


def _ping_async(url: str) -> tuple[bool, str]:
    async def ask() -> tuple[bool, str]:
        async with connect_async(url, role="test-async") as client:
            return bool(await client.ping()), str(await client.client_getname())

    return asyncio.run(ask())


def _check_both(url: str) -> None:
    with connect(url, role="test") as client:
        assert client.set("key", b"\xff") is True
        assert client.get("key") == b"\xff", "answers are bytes"
        assert client.client_getname() in {b"setpoint-test", "setpoint-test"}
    answered, name = _ping_async(url)
    assert answered
    assert "setpoint-test-async" in name


def test_unix_socket(url: str) -> None:
    _check_both(url)


def test_tcp(tcp_url: str) -> None:
    _check_both(tcp_url)


def test_tls_with_a_client_certificate(tls_server: TlsServer) -> None:
    _check_both(tls_server.url)


def test_tls_refuses_an_unknown_authority(tls_server: TlsServer) -> None:
    with (
        connect(f"rediss://{tls_server.host}:{tls_server.port}/0", role="test") as client,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.ping()


def test_tls_verification_can_be_turned_off(tls_server: TlsServer) -> None:
    url = (
        f"rediss://{tls_server.host}:{tls_server.port}/0?ssl_cert_reqs=none"
        f"&ssl_certfile={tls_server.certificate}&ssl_keyfile={tls_server.key}"
    )
    with connect(url, role="test") as client:
        assert client.ping()


def test_sentinel_names_the_primary(sentinel_setup: SentinelSetup) -> None:
    _check_both(sentinel_setup.url)
    with connect(sentinel_setup.url, role="watched") as client:
        client.ping()
        assert "setpoint-watched" in _names(sentinel_setup.primary)
        assert "setpoint-watched" in _names(sentinel_setup.sentinel)
    wait_until(lambda: "setpoint-watched" not in _names(sentinel_setup.sentinel), what="close to reach the Sentinel")


def test_a_sentinel_that_is_away_is_passed_over(sentinel_setup: SentinelSetup) -> None:
    url = sentinel_setup.url.replace("://", f"://127.0.0.1:{free_port()},")
    _check_both(url)


def test_sentinel_without_that_service(sentinel_setup: SentinelSetup) -> None:
    with (
        connect(sentinel_setup.url.replace("mymaster", "other"), role="test") as client,
        pytest.raises(redis.ConnectionError, match="other"),
    ):
        client.ping()


def test_a_cluster_node_can_be_reached(cluster_server: Server) -> None:
    _check_both(cluster_server.tcp_url)


def test_credentials_and_database(url: str, redis_server: Server) -> None:
    with redis_server.client() as admin:
        admin.acl_setuser("ann", enabled=True, passwords=["+p@ss:w/rd?"], keys=["*"], commands=["+@all"])
        place = f"127.0.0.1:{redis_server.port}"
        for address in (
            f"redis://ann:p%40ss%3Aw%2Frd%3F@{place}/3",
            f"redis://ann:p%40ss%3Aw%2Frd%3F@{place}?db=3",
            f"unix://ann:p%40ss%3Aw%2Frd%3F@{redis_server.socket}?db=3",
        ):
            with connect(address, role="test") as client:
                assert client.acl_whoami() in {"ann", b"ann"}
                client.set("where", address)
        with redis_server.client(db=3) as third:
            assert third.exists("where")


def test_a_new_connection_sends_nothing_but_its_name(new_server: Callable[..., Server]) -> None:
    server = new_server()
    with server.client() as admin:
        admin.config_resetstat()
        with connect(server.tcp_url, role="test") as client:
            client.ping()
        calls = {name for name in admin.info("commandstats") if "config" not in name}
    assert calls == {"cmdstat_client|setname", "cmdstat_ping"}


@pytest.mark.parametrize("make", ["redis://127.0.0.1:{port}/0", "unix:///nowhere/at/all.sock"])
def test_redis_away_is_told_at_once(make: str) -> None:
    began = time.monotonic()
    with connect(make.format(port=free_port()), role="test") as client, pytest.raises(redis.ConnectionError):
        client.ping()
    assert time.monotonic() - began < 1, "nothing is retried"


def test_a_server_that_does_not_answer_is_told_after_the_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        began = time.monotonic()
        with connect(url, role="test", timeout=0.2) as client, pytest.raises(redis.TimeoutError):
            client.ping()
        assert 0.2 <= time.monotonic() - began < 2


def test_a_lost_connection_is_an_error_for_the_call_and_mended_for_the_next(new_server: Callable[..., Server]) -> None:
    server = new_server()
    with connect(server.url, role="test") as client:
        client.ping()
        server.kill9()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert client.ping()


def test_without_a_timeout_a_read_may_block(url: str) -> None:
    with connect(url, role="test", timeout=None) as client:
        assert client.connection_pool.connection_kwargs["socket_timeout"] is None
        assert client.connection_pool.connection_kwargs["socket_connect_timeout"] == 5
        assert client.blpop(["nothing"], timeout=0.05) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "no scheme"),
        ("localhost:6379", "unknown scheme"),
        ("http://localhost", "unknown scheme 'http'"),
        ("redis://", "no host"),
        ("redis://host:port/0", "Port"),
        ("redis://host:0/0", "port 0"),
        ("redis://host:99999/0", "Port"),
        ("redis://host/first", "must be a number, not 'first'"),
        ("redis://host/0/1", "must be a number"),
        ("redis://host/0?retry=yes", "unknown option retry"),
        ("redis://host/0?ssl_ca_certs=/ca", "unknown option ssl_ca_certs for redis://"),
        ("redis://host/0#1", "%23"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "ssl_cert_reqs is none, optional or required"),
        ("rediss://host/0?ssl_check_hostname=maybe", "ssl_check_hostname is true or false"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("redis+sentinel://host:26379", "no Sentinel service"),
        ("redis+sentinel://host,,other/service", "no host"),
        ("redis+sentinel://host/service/zero", "must be a number"),
        ("redis://[::1/0", "IPv6"),
    ],
)
@pytest.mark.parametrize("make", [connect, connect_async])
def test_a_wrong_url_is_refused_with_the_forms_that_are_accepted(
    make: Callable[..., object], url: str, why: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(url, role="test")
    assert why in str(caught.value)
    assert "redis+sentinel://" in str(caught.value)


@pytest.mark.parametrize("password", ["secret", "se:cret", "se@cret", "se/cret", "se?cret", "se#cret"])
def test_a_wrong_url_does_not_show_its_password(password: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connect(f"http://ann:{password}@host:1/0", role="test")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://ann:secret@host:6379/0", "redis://ann:***@host:6379/0"),
        ("rediss://:secret@host", "rediss://:***@host"),
        ("unix:///run/redis.sock?db=0", "unix:///run/redis.sock?db=0"),
        ("unix://:s%40@/run/redis.sock", "unix://:***@/run/redis.sock"),
        (
            "redis+sentinel://a:b@h1:1,h2:2/svc/0?sentinel_username=u&sentinel_password=p",
            "redis+sentinel://a:***@h1:1,h2:2/svc/0?sentinel_username=u&sentinel_password=***",
        ),
        ("rediss://host/0?ssl_password=p&db=1", "rediss://host/0?ssl_password=***&db=1"),
        ("ann:secret@host", "ann:***@host"),
        ("", ""),
    ],
)
def test_mask(url: str, masked: str) -> None:
    assert mask(url) == masked


def test_every_part_of_a_url_reaches_the_client() -> None:
    client = connect("rediss://ann:pw@[::1]:7000/5?ssl_ca_certs=/ca.pem&ssl_check_hostname=no", role="test")
    options = client.connection_pool.connection_kwargs
    assert {name: options[name] for name in ("host", "port", "db", "username", "password")} == {
        "host": "::1",
        "port": 7000,
        "db": 5,
        "username": "ann",
        "password": "pw",
    }
    assert options["ssl_ca_certs"] == "/ca.pem"
    assert options["ssl_check_hostname"] is False
    assert options["protocol"] == 2
