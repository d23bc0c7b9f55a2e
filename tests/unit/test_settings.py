"""Settings."""

from __future__ import annotations

from typing import Any

import pytest

from setpoint.errors import ConfigurationError
from setpoint.settings import Settings


def test_the_defaults_are_those_of_the_documentation() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert (settings.namespace, settings.redis_url, settings.payload_limit) == ("setpoint", "", 65_536)
    assert (settings.lease_us, settings.lead_us, settings.grace_us) == (30_000_000, 3_000, 30_000_000)


def test_the_environment_is_read() -> None:
    settings = Settings.from_env(
        {
            "SETPOINT_REDIS_URL": "redis://a",
            "REDIS_URL": "redis://b",
            "SETPOINT_NAMESPACE": "prod",
            "SETPOINT_LEASE": "1m",
            "SETPOINT_LEAD": "0",
            "SETPOINT_PAYLOAD_LIMIT": "1000",
            "SETPOINT_LOG_FORMAT": "JSON",
            "SETPOINT_LOG_LEVEL": "Debug",
            "SETPOINT_APP": "shop:fleet",
            "SETPOINT_GRACE": "",
            "SETPOINT_LEASE_US": "5",
        }
    )
    assert (settings.redis_url, settings.hints_url, settings.namespace) == ("redis://a", "redis://a", "prod")
    assert (settings.lease_us, settings.lead_us, settings.payload_limit) == (60_000_000, 0, 1000)
    assert (settings.log_format, settings.log_level, settings.app) == ("json", "debug", "shop:fleet")


def test_the_usual_variable_is_the_fallback_and_what_is_given_goes_first() -> None:
    env = {"REDIS_URL": "redis://b", "SETPOINT_RQ_URL": "redis://c"}
    assert Settings.from_env(env).redis_url == "redis://b"
    assert Settings.from_env(env).hints_url == "redis://c"
    assert Settings.from_env(env, redis_url="redis://d", namespace=None).redis_url == "redis://d"


def test_the_own_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETPOINT_NAMESPACE", "mine")
    assert Settings.from_env().namespace == "mine"


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"lease": "1s"}, "LEASE"),
        ({"lease": "soon"}, "LEASE"),
        ({"lease": None}, "LEASE"),
        ({"lead": "2s"}, "LEAD"),
        ({"grace": "-1s"}, "GRACE"),
        ({"payload_limit": 0}, "PAYLOAD_LIMIT"),
        ({"payload_limit": 1 << 21}, "PAYLOAD_LIMIT"),
        ({"payload_limit": "64k"}, "PAYLOAD_LIMIT"),
        ({"namespace": "a b"}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"log_format": "xml"}, "LOG_FORMAT"),
        ({"log_level": "loud"}, "LOG_LEVEL"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(given_: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Settings(**given_)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="redis_ulr"):
        Settings.from_env({}, redis_ulr="x")


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Settings(redis_url="redis://:secret@h", rq_url="redis://:secret@h"))
