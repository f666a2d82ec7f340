"""The world with NATS JetStream in it: two publishers and two edges beside the relays, and what befalls these.

Clients go from one to the other with their cursors, whatever they are served from.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from nats.errors import Error
from nats.js import api

from relay.commands.bench.run import NO_LIMITS
from tests.acceptance.support import Daemon, Program
from tests.nats import NatsCluster, NatsServer
from tests.proxy import Proxy
from tests.torture import mutants
from tests.torture.world import FAULTS, World

STREAM: Final = "relay"
RELAYS: Final = range(2)
"""Those on Postgres."""
_HOST: Final = {"WS_HOST": "127.0.0.1", "HEALTH_PORT": "0"}


class EdgesWorld(World):
    """Two relays and two edges, two publishers; proxies cut one edge off, and each publisher on one side."""

    def __init__(self, folder: Path, seed: str, mutant: str | None) -> None:
        super().__init__(folder, seed, mutant)
        self._relays = [None, None, None, None]
        self._publishers: list[Program] = []
        self._nats = self._servers(folder / "nats")
        self._edge_proxy: Proxy
        self._publisher_proxy: Proxy

    def _servers(self, folder: Path) -> NatsServer | NatsCluster:
        return NatsServer(folder)

    @contextlib.asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._nats.start)
        try:
            async with (
                Proxy("127.0.0.1", self._nats.port) as self._edge_proxy,
                Proxy("127.0.0.1", self._nats.port) as self._publisher_proxy,
            ):
                for number in range(2):
                    self._publishers.append(self._publisher(number))
                try:
                    yield
                finally:
                    for publisher in self._publishers:
                        publisher.signal(signal.SIGKILL)
                        publisher.end()
        finally:
            await asyncio.to_thread(self._nats.stop)

    def _publisher(self, number: int) -> Program:
        """Start a publisher; one whose Postgres can be cut off, and one whose NATS can be."""
        settings = {
            "DATABASE_URL": self.dsn if number else self._proxy.through(self.dsn),
            "PUBLISH_TO": f"nats://127.0.0.1:{self._publisher_proxy.port}" if number else self._nats.url,
            "NATS_REPLICAS": str(self.replicas),
            **_HOST,
        }
        return Program([*self._command(number), "publish"], self.folder, settings)

    def _command(self, number: int) -> Sequence[str | Path]:
        """Return how to start one of two; the second has small parts, so that some are cut between two of them."""
        return mutants.command(self._mutant or (mutants.in_parts.__name__ if number % 2 else None))

    async def _start_relay(self, number: int) -> None:
        if number in RELAYS:
            await super()._start_relay(number)
            return
        through = self._nats.url if number % 2 else f"nats://127.0.0.1:{self._edge_proxy.port}"
        settings = {"SERVE_FROM": through, "WS_PORT": "0", **_HOST, **NO_LIMITS}
        edge = Daemon([], self.folder, settings, self._command(number))
        self._relays[number] = edge
        await edge.listens()

    # Faults

    async def restart_nats(self) -> None:
        """NATS is stopped and started."""
        await asyncio.to_thread(self._nats.stop)
        await asyncio.sleep(self._chance.choice([0.0, 1.0]))
        await asyncio.to_thread(self._nats.start)

    async def kill_nats(self) -> None:
        """NATS is killed, and started."""
        await asyncio.to_thread(self._nats.stop, signal.SIGKILL)
        await asyncio.to_thread(self._nats.start)

    async def lose_stream(self) -> None:
        """The stream is deleted."""
        async with self._nats.jetstream() as jetstream:
            await jetstream.delete_stream(STREAM)

    async def purge_stream(self) -> None:
        """All entries of the stream are gone."""
        async with self._nats.jetstream() as jetstream:
            await jetstream.purge_stream(STREAM)

    async def fill_stream(self) -> None:
        """The stream takes no more for a while."""
        async with self._nats.jetstream() as jetstream:
            config = (await jetstream.stream_info(STREAM)).config
            full: dict[str, Any] = {"discard": api.DiscardPolicy.NEW, "max_bytes": 1024}
            await jetstream.update_stream(config, **full)
            await asyncio.sleep(self._chance.choice([0.3, 2.0]))
            await jetstream.update_stream(config)

    async def kill_publisher(self) -> None:
        """A publisher is killed, perhaps in the midst of a batch, and started again."""
        number = self._chance.randrange(2)
        self._publishers[number].signal(signal.SIGKILL)
        self._publishers[number].end()
        self._publishers[number] = self._publisher(number)

    async def stop_publisher(self) -> None:
        """A publisher is stopped, and started again."""
        number = self._chance.randrange(2)
        await asyncio.to_thread(self._publishers[number].end)
        self._publishers[number] = self._publisher(number)

    async def suspend_publishers(self) -> None:
        """One publisher after the other stands still until another is active, and goes on then."""
        for publisher in self._publishers:
            publisher.signal(signal.SIGSTOP)
            await asyncio.sleep(self._chance.choice([0.5, 4.5]))
            publisher.signal(signal.SIGCONT)

    async def cut_edge(self) -> None:
        """An edge is cut off from NATS."""
        await self._edge_proxy.cut()
        await asyncio.sleep(self._chance.random() * 2)
        await self._edge_proxy.restore()

    async def strand_edge(self) -> None:
        """An edge's link to NATS is half-open."""
        self._edge_proxy.strand()

    async def strand_publisher(self) -> None:
        """A publisher's link to NATS is half-open."""
        self._publisher_proxy.strand()

    async def freeze_publisher(self) -> None:
        """The network between a publisher and NATS freezes, until another is active, and thaws."""
        self._publisher_proxy.freeze()
        await asyncio.sleep(self._chance.choice([0.5, 4.5]))
        self._publisher_proxy.thaw()

    replicas: ClassVar[int] = 1
    """On how many servers the stream is kept."""
    forgiven: ClassVar[tuple[type[Exception], ...]] = (Error,)
    faults_known: ClassVar[tuple[Callable[[Any], Awaitable[None]], ...]] = (
        *FAULTS,
        restart_nats,
        kill_nats,
        lose_stream,
        purge_stream,
        fill_stream,
        kill_publisher,
        kill_publisher,
        stop_publisher,
        suspend_publishers,
        cut_edge,
        strand_edge,
        strand_publisher,
        freeze_publisher,
    )


class ClusterWorld(EdgesWorld):
    """The same on a cluster of three NATS servers; proxies lead to the first of them."""

    replicas = 3

    def _servers(self, folder: Path) -> NatsCluster:
        self._cluster = NatsCluster(folder)
        return self._cluster

    async def kill_leader(self) -> None:
        """The server that leads the stream is killed, and started again when another leads it, or before."""
        leader = await self._cluster.leader(STREAM)
        await asyncio.to_thread(leader.stop, signal.SIGKILL)
        await asyncio.sleep(self._chance.choice([0.0, 2.0, 10.0]))
        await asyncio.to_thread(leader.start)

    async def kill_server(self) -> None:
        """A server of the cluster is killed, and started again."""
        server = self._chance.choice(self._cluster.servers)
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        await asyncio.sleep(self._chance.random() * 3)
        await asyncio.to_thread(server.start)

    # All three at once are out for so long that little else would happen.
    faults_known = (
        *(fault for fault in EdgesWorld.faults_known if fault is not EdgesWorld.restart_nats),
        kill_leader,
        kill_leader,
        kill_server,
    )
