"""Settings: the guide's defaults, and one line for each that cannot be used."""

from __future__ import annotations

import traceback

import pytest

from relay import config


def test_the_defaults_are_the_guides() -> None:
    assert config.load({}).model_dump() == {
        "WS_PORT": 4002,
        "WS_HOST": "0.0.0.0",
        "WS_ENABLED": True,
        "WS_HEARTBEAT": 30_000,
        "WS_MAX_CONNECTIONS": 100,
        "WS_SEND_BUFFER": 1_048_576,
        "WS_COMPRESSION": False,
        "WS_WORKERS": 1,
        "HEALTH_PORT": 4001,
        "DATABASE_URL": "",
    }


def test_settings_are_read_from_text() -> None:
    given = {
        "WS_PORT": "0",
        "WS_HOST": "::1",
        "WS_ENABLED": "false",
        "WS_HEARTBEAT": "100",
        "WS_MAX_CONNECTIONS": "1",
        "WS_SEND_BUFFER": "65536",
        "WS_COMPRESSION": "true",
        "WS_WORKERS": "256",
        "HEALTH_PORT": "65535",
        "DATABASE_URL": "host=db user=relay",
    }
    assert config.load(given).model_dump() == {
        "WS_PORT": 0,
        "WS_HOST": "::1",
        "WS_ENABLED": False,
        "WS_HEARTBEAT": 100,
        "WS_MAX_CONNECTIONS": 1,
        "WS_SEND_BUFFER": 65_536,
        "WS_COMPRESSION": True,
        "WS_WORKERS": 256,
        "HEALTH_PORT": 65_535,
        "DATABASE_URL": "host=db user=relay",
    }


@pytest.mark.parametrize("value", ["true", "TRUE", "True"])
def test_the_endpoint_is_enabled_in_any_case_of_letters(value: str) -> None:
    assert config.load({"WS_ENABLED": value}).WS_ENABLED is True


@pytest.mark.parametrize("url", ["postgresql://relay@db:5432/tasks?sslmode=require", "dbname='my tasks'", ""])
def test_a_database_url_is_whatever_libpq_takes(url: str) -> None:
    settings = config.load({"DATABASE_URL": url})
    assert url == settings.DATABASE_URL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WS_PORT", "65536"),
        ("WS_PORT", "-1"),
        ("WS_PORT", "http"),
        ("WS_PORT", ""),
        ("WS_PORT", "4002\n4003"),
        ("HEALTH_PORT", "65536"),
        ("HEALTH_PORT", "-1"),
        ("WS_HOST", ""),
        ("WS_ENABLED", "maybe"),
        ("WS_ENABLED", ""),
        ("WS_HEARTBEAT", "99"),
        ("WS_HEARTBEAT", "3600001"),
        ("WS_HEARTBEAT", "30s"),
        ("WS_MAX_CONNECTIONS", "0"),
        ("WS_MAX_CONNECTIONS", "1.5"),
        ("WS_WORKERS", "0"),
        ("WS_WORKERS", "257"),
        ("WS_WORKERS", "all"),
        ("WS_SEND_BUFFER", "65535"),
        ("WS_SEND_BUFFER", "1073741825"),
        ("WS_COMPRESSION", "deflate"),
    ],
)
def test_a_bad_value_gives_one_line_with_the_setting_the_value_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(config.SettingsError) as caught:
        config.load({name: value})
    assert str(caught.value) == f"{name}: {value!r} is not allowed: expected {config.ALLOWED[name]}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["hunter2", "postgresql://relay:hunter2@db/tasks?nonsense=1", "password=hunter2 nonsense=1", "password='hunter2"],
)
def test_a_bad_database_url_is_never_repeated(url: str) -> None:
    with pytest.raises(config.SettingsError) as caught:
        config.load({"DATABASE_URL": url})
    assert str(caught.value) == f"DATABASE_URL: its value is not allowed: expected {config.ALLOWED['DATABASE_URL']}"
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_settings_cannot_be_changed_once_they_are_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load({}).WS_PORT = 1


def test_every_setting_says_what_it_is_and_what_it_may_be() -> None:
    assert config.ALLOWED.keys() == config.Settings.model_fields.keys()
    assert all(config.ALLOWED.values())
    assert all(field.description for field in config.Settings.model_fields.values())


def test_every_secret_is_a_setting() -> None:
    assert config.SECRET.issubset(config.Settings.model_fields)
