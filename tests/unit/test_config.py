"""Settings: the guide's defaults, and one line for each that cannot be used."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from relay import config

SPACED = "it has a space or a line break: expected none around it, and in the user and the password %20"
ESCAPED = "in the user and the password, write # as %23, / as %2F, : as %3A, ? as %3F, @ as %40"


def test_the_defaults_are_the_guides() -> None:
    assert config.load({}).model_dump() == {
        "WS_PORT": 4002,
        "WS_HOST": "0.0.0.0",
        "WS_SOCKET": "",
        "WS_ENABLED": True,
        "WS_HEARTBEAT": 30_000,
        "WS_MAX_CONNECTIONS": 100,
        "WS_MAX_CONNECTIONS_PER_ADDRESS": 0,
        "WS_SEND_BUFFER": 1_048_576,
        "WS_COMPRESSION": False,
        "WS_WORKERS": 1,
        "WS_TOKENS": "",
        "WS_TOKENS_FILE": "",
        "WS_JWT_SECRET": "",
        "WS_JWT_KEYS": "",
        "WS_JWT_AUDIENCE": "",
        "WS_JWT_ISSUER": "",
        "WS_MAY_READ": False,
        "WS_ORIGINS": "http://localhost:4000",
        "WS_REQUIRE_ORIGIN": False,
        "WS_TRUSTED_PROXIES": "",
        "WS_RATE_LIMIT_PER_CLIENT": 10,
        "WS_RATE_LIMIT_TOTAL": 100,
        "WS_MESSAGE_RATE": 50,
        "WS_MAX_BOARDS": 100,
        "WS_HANDSHAKE_TIMEOUT": 10_000,
        "WS_IDLE_TIMEOUT": 300_000,
        "WS_BACKLOG_TOTAL": 268_435_456,
        "WS_DRAIN": 5000,
        "WS_TLS_CERT": "",
        "WS_TLS_KEY": "",
        "HEALTH_PORT": 4001,
        "HEALTH_BUDGET": 10_000,
        "BOARD_PAGE": True,
        "LOG_LEVEL": "info",
        "DATABASE_URL": "",
        "SERVE_FROM": "",
        "PUBLISH_TO": "nats://localhost:4222",
        "NATS_STREAM": "relay",
        "NATS_DOMAIN": "",
        "NATS_CREDENTIALS": "",
        "NATS_CA": "",
        "NATS_CERT": "",
        "NATS_KEY": "",
        "NATS_KEEP": 3600,
        "NATS_KEEP_BYTES": 1_073_741_824,
        "NATS_REPLICAS": 1,
    }


def test_an_option_wins_over_the_environment_and_this_over_a_secrets_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WS_TOKENS", "WS_JWT_AUDIENCE", "WS_JWT_ISSUER"):
        (tmp_path / name).write_text("of the file\n")
    (tmp_path / "unrelated").write_text("text")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("WS_JWT_AUDIENCE", "of the environment")
    monkeypatch.setenv("WS_JWT_ISSUER", "of the environment")
    names = ("WS_TOKENS", "WS_JWT_AUDIENCE", "WS_JWT_ISSUER")

    found = config.read({"WS_JWT_ISSUER": "of the option", "WS_JWT_AUDIENCE": None}, names)

    assert found.WS_TOKENS == "of the file"
    assert found.WS_JWT_AUDIENCE == "of the environment"
    assert found.WS_JWT_ISSUER == "of the option"


def test_an_empty_variable_counts_as_unset_and_those_of_other_commands_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WS_PORT", "")
    monkeypatch.setenv("WS_HEARTBEAT", "nonsense")

    assert config.read({}, ["WS_PORT"]).WS_PORT == 4002


def test_a_secret_that_is_not_text_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "WS_TOKENS").write_bytes(b"\xff")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

    with pytest.raises(config.SettingsError, match=r"^secrets cannot be read: a file there is not UTF-8: expected"):
        config.read({}, ["WS_TOKENS"])


@pytest.mark.parametrize("value", ["true", "TRUE", "True"])
def test_the_endpoint_is_enabled_in_any_case_of_letters(value: str) -> None:
    assert config.load({"WS_ENABLED": value}).WS_ENABLED is True


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://relay@db:5432/tasks?sslmode=require",
        "dbname='my tasks'",
        "postgresql://a:1,b:2/app",
        "host=/run/pg",
        "postgresql://me:a%23@/app?host=/run",
        "",
    ],
)
def test_a_database_url_is_whatever_libpq_takes(url: str) -> None:
    settings = config.load({"DATABASE_URL": url})
    assert url == settings.DATABASE_URL


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WS_PORT", "65536"),
        ("WS_PORT", "-1"),
        ("WS_PORT", "http"),
        ("WS_PORT", "4002\n4003"),
        ("WS_HOST", ""),
        ("WS_HOST", " ,"),
        ("WS_ENABLED", "maybe"),
        ("WS_HEARTBEAT", "99"),
        ("WS_HEARTBEAT", "3600001"),
        ("WS_HEARTBEAT", "30s"),
        ("WS_MAX_CONNECTIONS", "0"),
        ("WS_MAX_CONNECTIONS", "1.5"),
        ("WS_WORKERS", "257"),
        ("WS_SEND_BUFFER", "65535"),
        ("WS_JWT_KEYS", "http://issuer.example.com/keys"),
        ("WS_ORIGINS", "localhost"),
        ("WS_ORIGINS", "https://a.example.com/path"),
        ("WS_TRUSTED_PROXIES", "proxy"),
        ("WS_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("WS_RATE_LIMIT_PER_CLIENT", "-1"),
        ("WS_TLS_KEY", "/key"),
        ("WS_SEND_BUFFER", "1073741825"),
        ("WS_COMPRESSION", "deflate"),
        ("BOARD_PAGE", "no page"),
    ],
)
def test_a_bad_value_gives_one_line_with_the_setting_the_value_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(config.SettingsError) as caught:
        config.load({name: value})
    assert str(caught.value) == f"{name}: {value!r} is not allowed: expected {config.SETTINGS[name].allowed}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("hunter2", ""),
        ("password='hunter2", ""),
        ("password=hunter2 nonsense=1", "it has a parameter nonsense, which libpq does not know: remove it"),
        (
            "postgresql://relay:hunter2@db/tasks?schema=1",
            "it has a parameter schema, which libpq does not know: remove it",
        ),
        ("postgresql+asyncpg://me:hunter2@db/tasks", "it begins with postgresql+asyncpg://: expected postgresql://"),
        ("jdbc:postgresql://db/tasks?password=hunter2", "it begins with jdbc:postgresql://: expected postgresql://"),
        ('"postgresql://me:hunter2@db"', "it is in quotes: expected none (docker --env-file keeps those of a file)"),
        ("postgresql://me:hunter2@x@db/tasks", ESCAPED),
        ("postgresql://me:hunter2/x@db/tasks", ESCAPED),
        ("postgresql://me:hunter2%@db/tasks", "a % has to be escaped: write it as %25"),
        ("postgresql://me:hunter2 x@db/tasks", SPACED),
        ("postgresql://me:hunter2@db/tasks\n", SPACED),
    ],
)
def test_a_bad_database_url_says_why_and_is_never_repeated(url: str, why: str) -> None:
    with pytest.raises(config.SettingsError) as caught:
        config.load({"DATABASE_URL": url})
    because = f": {why}" if why else ""
    expected = f"its value is not allowed{because}: expected {config.SETTINGS['DATABASE_URL'].allowed}"
    assert str(caught.value) == f"DATABASE_URL: {expected}"
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["WS_PORT", "HEALTH_PORT"])
def test_a_port_that_kubernetes_set_says_where_it_comes_from(name: str) -> None:
    with pytest.raises(config.SettingsError) as caught:
        config.load({name: "tcp://10.43.0.1:4002"})
    service = name.removesuffix("_PORT").lower()
    assert f"Kubernetes sets it for a service {service}: set enableServiceLinks: false" in str(caught.value)


def test_misspelt_settings_are_found() -> None:
    """And a variable that resembles none of them is left alone, as are Kubernetes's own."""
    names = ["WS_MAX_CONECTIONS", "WS_ORIGIN", "WS_PORT", "WS_PORT_4002_TCP", "WS_SERVICE_HOST", "PATH", "HOME"]
    found = list(config.misspelt(names))
    assert found == [("WS_MAX_CONECTIONS", "WS_MAX_CONNECTIONS"), ("WS_ORIGIN", "WS_ORIGINS")]


def test_settings_cannot_be_changed_once_they_are_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config.load({}).WS_PORT = 1


def test_a_short_secret_is_refused_and_not_shown() -> None:
    with pytest.raises(config.SettingsError, match="WS_JWT_SECRET: its value is not allowed: expected text of 32"):
        config.load({"WS_JWT_SECRET": "s" * 31})
