"""One way to reach Redis for every process: the URL says where, the role says who asks.

Accepted forms::

    redis://[user:password@]host[:6379][/db]                                 TCP
    rediss://[user:password@]host[:6379][/db][?ssl_ca_certs=…]               TLS
    unix://[user:password@]/path/to.sock[?db=0]                              Unix socket
    redis+sentinel://[user:password@]host[:26379],host[:26379]/service[/db]  the primary that Sentinel names
    rediss+sentinel://…                                                      the same, all over TLS
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import UnixDomainSocketConnection as AsyncUnixDomainSocketConnection
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.backoff import NoBackoff
from redis.connection import SSLConnection, UnixDomainSocketConnection
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from setpoint.errors import ConfigurationError

#: Longest wait for a connection to be made, and for an answer from a Sentinel, even where the command itself may block
#: for ever; seconds.
CONNECT_TIMEOUT: Final = 5.0

_FORMS: Final = (
    "accepted: redis://[user:password@]host[:port][/db], rediss://… (TLS; ssl_ca_certs=, ssl_certfile=, ssl_keyfile=, "
    "ssl_cert_reqs= as query), unix://[user:password@]/path/to.sock[?db=n], "
    "redis+sentinel://[user:password@]host[:port],host[:port]/service[/db] and rediss+sentinel://…"
)

_SCHEMES: Final = frozenset({"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"})
_TLS_TEXT: Final = frozenset(
    {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_ciphers"}
)
_TLS_OPTIONS: Final = _TLS_TEXT | {"ssl_cert_reqs", "ssl_check_hostname"}
_SECRETS: Final = re.compile(r"(?i)([?&](?:password|sentinel_password|ssl_password)=)[^&#]*")


@dataclass(frozen=True, slots=True)
class _Address:
    """A URL, understood."""

    transport: Literal["tcp", "unix", "sentinel"]
    db: int
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    credentials: dict[str, str] = field(default_factory=dict[str, str])
    sentinel_credentials: dict[str, str] = field(default_factory=dict[str, str])
    tls: bool = False
    tls_options: dict[str, str | bool] = field(default_factory=dict[str, "str | bool"])


class _SentinelPool(SentinelConnectionPool):
    """A pool that also closes its connections to the Sentinels."""

    def __init__(self, service: str, sentinel: Sentinel, **options: Any) -> None:
        super().__init__(service, sentinel, is_master=True, **options)  # type: ignore[no-untyped-call]
        self._sentinel = sentinel

    def close(self) -> None:
        super().close()
        self._sentinel.close()


class _AsyncSentinelPool(AsyncSentinelConnectionPool):
    """A pool that also closes its connections to the Sentinels."""

    def __init__(self, service: str, sentinel: AsyncSentinel, **options: Any) -> None:
        super().__init__(service, sentinel, is_master=True, **options)  # type: ignore[no-untyped-call]
        self._sentinel = sentinel

    async def aclose(self) -> None:
        await super().aclose()
        for client in self._sentinel.sentinels:
            await client.aclose()


def connect(url: str, *, role: str, timeout: float | None = CONNECT_TIMEOUT) -> redis.Redis:
    """A client for the server that `url` names. Opens nothing: the first command connects.

    `role` says in CLIENT LIST who asks (`setpoint-<role>`). `timeout` is the longest wait for one answer in seconds;
    blocking reads need None. Nothing is retried: a caller knows which of its calls may be repeated.

    Raises `ConfigurationError` when the URL makes no sense. Commands raise `redis.ConnectionError` or
    `redis.TimeoutError` when the server is away.
    """
    address = _parse(url)
    options = _options(address, role, timeout)
    if address.transport == "sentinel":
        sentinel = Sentinel(address.hosts, sentinel_kwargs=_sentinel_options(address, role))
        return redis.Redis.from_pool(_SentinelPool(address.service, sentinel, ssl=address.tls, **options))
    if address.transport == "unix":
        options.update(connection_class=UnixDomainSocketConnection, path=address.path)
    else:
        host, port = address.hosts[0]
        options.update(connection_class=SSLConnection if address.tls else redis.Connection, host=host, port=port)
    return redis.Redis.from_pool(redis.ConnectionPool(**options))


def connect_async(url: str, *, role: str, timeout: float | None = CONNECT_TIMEOUT) -> redis.asyncio.Redis:
    """The same as `connect`, for asyncio. The client belongs to the event loop that first uses it."""
    address = _parse(url)
    options = _options(address, role, timeout)
    if address.transport == "sentinel":
        sentinel = AsyncSentinel(address.hosts, sentinel_kwargs=_sentinel_options(address, role))
        return redis.asyncio.Redis.from_pool(_AsyncSentinelPool(address.service, sentinel, ssl=address.tls, **options))
    if address.transport == "unix":
        options.update(connection_class=AsyncUnixDomainSocketConnection, path=address.path)
    else:
        host, port = address.hosts[0]
        options.update(
            connection_class=AsyncSSLConnection if address.tls else redis.asyncio.Connection, host=host, port=port
        )
    return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(**options))


def mask(url: str) -> str:
    """The URL with its passwords replaced by `***`, for logs and messages; for broken URLs too."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    # The last @ of all: an unescaped @, / or ? in a password must not reveal its end.
    userinfo, at, place = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    if at and colon:
        rest = f"{user}:***@{place}"
    return _SECRETS.sub(r"\1***", f"{scheme}{separator}{rest}")


def _options(address: _Address, role: str, timeout: float | None) -> dict[str, Any]:
    return {
        "db": address.db,
        **address.credentials,
        **address.tls_options,
        **_common_options(role, timeout),
    }


def _sentinel_options(address: _Address, role: str) -> dict[str, Any]:
    options = {**address.sentinel_credentials, **_common_options(role, CONNECT_TIMEOUT)}
    if address.tls:
        options.update(address.tls_options, ssl=True)
    return options


def _common_options(role: str, timeout: float | None) -> dict[str, Any]:
    return {
        "client_name": f"setpoint-{role}",
        "socket_timeout": timeout,
        "socket_connect_timeout": CONNECT_TIMEOUT if timeout is None else timeout,
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        # RESP2 parses quicker and needs no HELLO; without lib info and maintenance notifications a new connection
        # costs one round trip instead of four.
        "protocol": 2,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _parse(url: str) -> _Address:
    try:
        return _understand(url)
    except ConfigurationError:
        raise
    except ValueError as error:  # urlsplit and int() name what they could not read
        raise _refuse(url, str(error)) from None


def _refuse(url: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"cannot use the Redis URL {mask(url)!r}: {why}; {_FORMS}")


def _understand(url: str) -> _Address:
    split = urlsplit(url)
    if split.scheme not in _SCHEMES:
        raise _refuse(url, f"unknown scheme {split.scheme!r}" if split.scheme else "it has no scheme")
    if split.fragment:
        raise _refuse(url, "a '#' must be written %23")
    query = dict(parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query)))
    tls = split.scheme.startswith("rediss")
    sentinel = split.scheme.endswith("+sentinel")
    _check_query(url, split.scheme, query)

    userinfo, _, places = split.netloc.rpartition("@")
    common: dict[str, Any] = {
        "credentials": _credentials(userinfo),
        "tls": tls,
        "tls_options": {name: _tls_option(name, value) for name, value in query.items() if name in _TLS_OPTIONS},
    }
    if split.scheme == "unix":
        if not split.path or places:
            raise _refuse(url, "it names no absolute path; three slashes: unix:///run/redis.sock")
        return _Address("unix", _database(query.get("db", "")), path=unquote(split.path), **common)
    if sentinel:
        hosts = tuple(_host_and_port(place, 26379) for place in places.split(","))
        service, _, database = split.path.lstrip("/").partition("/")
        if not service:
            raise _refuse(url, "it names no Sentinel service")
        return _Address(
            "sentinel",
            _database(query.get("db", database)),
            hosts=hosts,
            service=unquote(service),
            sentinel_credentials={
                name.removeprefix("sentinel_"): value for name, value in query.items() if name.startswith("sentinel_")
            },
            **common,
        )
    return _Address(
        "tcp",
        _database(query.get("db", split.path.removeprefix("/"))),
        hosts=(_host_and_port(places, 6379),),
        **common,
    )


def _check_query(url: str, scheme: str, query: dict[str, str]) -> None:
    known = {"db"}
    if scheme.startswith("rediss"):
        known |= _TLS_OPTIONS
    if scheme.endswith("+sentinel"):
        known |= {"sentinel_username", "sentinel_password"}
    unknown = sorted(query.keys() - known)
    if unknown:
        raise _refuse(url, f"unknown option {', '.join(unknown)} for {scheme}://")


def _credentials(userinfo: str) -> dict[str, str]:
    user, _, password = userinfo.partition(":")
    named = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in named.items() if value}


def _host_and_port(place: str, default_port: int) -> tuple[str, int]:
    # SplitResult knows how to read one host and port, IPv6 included.
    split = SplitResult("", place, "", "", "")
    if not split.hostname:
        raise ValueError("it names no host")
    if split.port == 0:
        raise ValueError("port 0 cannot be connected to")
    return unquote(split.hostname), split.port or default_port


def _database(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise ValueError(f"the database must be a number, not {text!r}")
    return int(text)


def _tls_option(name: str, value: str) -> str | bool:
    if name == "ssl_cert_reqs":
        if value not in {"none", "optional", "required"}:
            raise ValueError(f"ssl_cert_reqs is none, optional or required, not {value!r}")
        return value
    if name == "ssl_check_hostname":
        if value.lower() not in {"true", "false", "yes", "no", "1", "0"}:
            raise ValueError(f"ssl_check_hostname is true or false, not {value!r}")
        return value.lower() in {"true", "yes", "1"}
    return value
