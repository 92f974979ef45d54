"""Who may use a connection to Redis, and when: on a server that says of itself what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import hiredis
import pytest

from gateway.ledger import connection as connection_module
from gateway.ledger import scripts
from gateway.ledger.connection import Connection, LedgerAway


class TalkingServer:
    """Answers what a connection asks. Its claims may be changed between two questions."""

    def __init__(self) -> None:
        self.info = {
            "run_id": "a" * 40,
            "role": "master",
            "master_replid": "1" * 40,
            "connected_slaves": "0",
            "aof_enabled": "1",
            "maxmemory_policy": "noeviction",
        }
        self.appendfsync: str | None = "always"
        self.info_error = ""
        self.commands: list[list[bytes]] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        self._writers.add(writer)
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.commands.append(command)
                writer.write(self._answer(command))
        writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _answer(self, command: list[bytes]) -> bytes:
        if command[0] == b"INFO":
            text = "# Part\r\n" + "".join(f"{name}:{value}\r\n" for name, value in self.info.items())
            return (
                f"-{self.info_error}\r\n".encode() if self.info_error else b"$%d\r\n%b\r\n" % (len(text), text.encode())
            )
        if command[0] == b"CONFIG":
            if self.appendfsync is None:
                return b"-NOPERM this user may not\r\n"
            value = self.appendfsync.encode()
            return b"*2\r\n$11\r\nappendfsync\r\n$%d\r\n%b\r\n" % (len(value), value)
        return b"+OK\r\n"


@pytest.fixture
async def server() -> AsyncIterator[TalkingServer]:
    talking = TalkingServer()
    listening = await asyncio.start_server(talking.accept, "127.0.0.1", 0)
    talking.url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    yield talking
    listening.close()
    talking.hang_up()


@contextlib.asynccontextmanager
async def running(connection: Connection):
    task = asyncio.ensure_future(connection.run())
    try:
        yield connection
    finally:
        await connection.close()
        await asyncio.wait_for(task, 5)


async def reconnected(connection: Connection, server: TalkingServer) -> None:
    generation = connection.generation
    server.hang_up()
    async with asyncio.timeout(5):
        while connection.generation == generation or not connection.connected:
            await asyncio.sleep(0.005)


async def test_a_new_server_is_accepted_before_anyone_may_use_it(server):
    entered, go_on, used = asyncio.Event(), asyncio.Event(), []

    async def accept(run_id: str) -> None:
        entered.set()
        used.append(run_id)
        used.append(await connection.command("PING"))
        used.extend(await asyncio.gather(*(connection.script("hold", ["k"], []) for _ in range(2))))
        await go_on.wait()

    async with running(Connection(server.url, scripts.load(), on_new_server=accept)) as connection:
        await entered.wait()
        await asyncio.sleep(0.02)
        assert used == ["a" * 40, b"OK", b"OK", b"OK"]
        assert not connection.connected
        with pytest.raises(LedgerAway) as caught:
            connection.call("PING")
        assert not caught.value.sent
        go_on.set()
        await connection.wait_ready(5)
        assert await connection.command("PING") == b"OK"


async def test_only_another_server_is_asked_about_again(server):
    asked: list[str] = []

    async def accept(run_id: str) -> None:
        asked.append(run_id)

    async with running(Connection(server.url, on_new_server=accept)) as connection:
        await connection.wait_ready(5)
        await reconnected(connection, server)
        assert asked == ["a" * 40]
        server.info["run_id"] = "b" * 40
        await reconnected(connection, server)
        assert asked == ["a" * 40, "b" * 40]
        # The same process, but it was a replica of another in between, and took over that one's data.
        server.info["master_replid"] = "2" * 40
        await reconnected(connection, server)
        assert asked == ["a" * 40, "b" * 40, "b" * 40]


async def test_a_server_that_is_not_accepted_is_dropped_and_tried_again(server):
    attempts = 0

    async def accept(run_id: str) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError("PostgreSQL is away")

    connection = Connection(server.url, on_new_server=accept)
    async with running(connection):
        with pytest.raises(LedgerAway):
            connection.call("PING")
        await connection.wait_ready(5)
        assert attempts == 3
        assert connection.generation == 1
        assert sum(command[0] == b"INFO" for command in server.commands) == 3  # each time on a connection of its own


async def test_a_step_that_fails_keeps_the_connection_from_being_used(server):
    steps: list[int] = []

    async def step() -> None:
        steps.append(len(steps))
        await connection.command("PING")
        if len(steps) == 1:
            raise LedgerAway("away again")

    connection = Connection(server.url)
    connection.before_ready(step)
    async with running(connection):
        await connection.wait_ready(5)
        assert steps == [0, 1]
        await reconnected(connection, server)
        assert steps == [0, 1, 2]


@pytest.mark.parametrize("role", ["slave", ""])
async def test_a_replica_is_away_until_it_is_promoted(server, role):
    server.info["role"] = role
    async with running(Connection(server.url)) as connection:
        await asyncio.sleep(0.1)
        assert not connection.connected
        server.info["role"] = "master"
        await connection.wait_ready(5)


async def test_a_server_that_does_not_say_what_it_is_cannot_be_used(server, caplog):
    server.info_error = "NOPERM this user has no permissions to run the 'info' command"
    async with running(Connection(server.url)) as connection:
        await asyncio.sleep(0.2)
        assert not connection.connected
    told = [record.why for record in caplog.records if record.message == "Redis is away"]
    assert len(told) == 1  # not for each attempt
    assert "NOPERM" in told[0]


async def test_a_live_connection_notices_what_became_of_its_server(server, monkeypatch):
    monkeypatch.setattr(connection_module, "LOOK_INTERVAL_S", 0.02)
    asked: list[str] = []

    async def accept(run_id: str) -> None:
        asked.append(run_id)

    async with running(Connection(server.url, on_new_server=accept)) as connection:
        await connection.wait_ready(5)
        assert not connection.server.may_lose
        server.appendfsync = "everysec"
        async with asyncio.timeout(5):
            while not connection.server.may_lose:
                await asyncio.sleep(0.005)
        server.info["master_replid"] = "2" * 40
        async with asyncio.timeout(5):
            while len(asked) < 2:
                await asyncio.sleep(0.005)
        await connection.wait_ready(5)
        server.info["role"] = "slave"
        async with asyncio.timeout(5):
            while connection.connected:
                await asyncio.sleep(0.005)


async def test_a_connection_that_is_lost_while_it_is_greeted_is_not_used(server):
    async def accept(run_id: str) -> None:
        if connection.generation == 0 and not lost:
            lost.append(run_id)
            server.hang_up()
            await asyncio.sleep(0.05)

    lost: list[str] = []
    connection = Connection(server.url, on_new_server=accept)
    async with running(connection):
        await connection.wait_ready(5)
        assert lost == ["a" * 40]
        assert await connection.command("PING") == b"OK"


async def test_what_may_lose_money_is_logged(server, caplog):
    server.info |= {"aof_enabled": "0", "maxmemory_policy": "allkeys-lru"}
    async with running(Connection(server.url)) as connection:
        await connection.wait_ready(5)
    warned = "\n".join(record.why for record in caplog.records if record.levelname == "WARNING")
    assert "allkeys-lru" in warned
    assert "appendonly is off" in warned


async def test_attempts_to_connect_are_jittered_and_ever_rarer(monkeypatch):
    slept: list[float] = []
    real = asyncio.sleep
    connection = Connection("redis://127.0.0.1:1/0")

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        if len(slept) == 12:
            await connection.close()
        await real(0)

    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 1.0

    monkeypatch.setattr(connection_module.random, "uniform", uniform)
    monkeypatch.setattr(connection_module.asyncio, "sleep", sleep)
    await connection.run()
    assert slept[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert set(slept[7:]) == {2.0}
    assert set(drawn) == {(0.5, 1.5)}
