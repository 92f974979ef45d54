"""The coalescing connection, on a real Valkey and on a server that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.errors import ConfigurationError
from gateway.ledger import scripts
from gateway.ledger.connection import Address, Connection, LedgerAway


@contextlib.asynccontextmanager
async def connected(url: str, **changes):
    connection = Connection(url, scripts.load(), **changes)
    running = asyncio.ensure_future(connection.run())
    try:
        await connection.wait_ready(5)
        yield connection
    finally:
        await connection.close()
        await asyncio.wait_for(running, 5)


async def test_commands_of_one_tick_leave_in_one_write(valkey, redis_client):
    async with connected(valkey) as connection:
        writes = []
        transport = connection._protocol._transport

        class Recorder:
            def write(self, data):
                writes.append(data)
                transport.write(data)

            def __getattr__(self, name):
                return getattr(transport, name)

        connection._protocol._transport = Recorder()
        replies = await asyncio.gather(*(connection.command("SET", f"k{number}", number) for number in range(100)))
        assert replies == [b"OK"] * 100
        assert len(writes) == 2  # the first leaves at once, the other 99 together
        assert await redis_client.get("k99") == b"99"


async def test_replies_come_to_their_askers_in_order(valkey, redis_client):
    async with connected(valkey) as connection:
        found = await asyncio.gather(*(connection.command("ECHO", f"{number}") for number in range(500)))
        assert found == [str(number).encode() for number in range(500)]


async def test_a_lost_connection_fails_what_is_in_flight_and_is_made_anew(valkey, redis_client):
    async with connected(valkey) as connection:
        generation = connection.generation
        waiting = asyncio.ensure_future(connection.command("BLPOP", "nothing", 5))
        await asyncio.sleep(0.05)
        await redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(LedgerAway) as caught:
            await waiting
        assert caught.value.sent
        await connection.wait_ready(5)
        assert await connection.command("PING") == b"PONG"
        assert connection.generation == generation + 1


async def test_nothing_is_sent_while_redis_is_away():
    connection = Connection("redis://127.0.0.1:1/0", scripts.load())
    with pytest.raises(LedgerAway) as caught:
        await connection.command("PING")
    assert not caught.value.sent


async def test_a_server_that_stops_answering_is_left(valkey, redis_client):
    async with connected(valkey, timeout_ms=300) as connection:
        await redis_client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        with pytest.raises(LedgerAway):
            await asyncio.wait_for(connection.command("PING"), 3)
    await asyncio.sleep(1.6)


async def test_too_many_waiting_commands_are_refused(valkey, redis_client):
    async with connected(valkey, pending_max=10) as connection:
        issued = [connection.call("PING") for _ in range(10)]
        with pytest.raises(LedgerAway) as caught:
            connection.call("PING")
        assert not caught.value.sent
        assert await asyncio.gather(*issued) == [b"PONG"] * 10


async def test_a_full_or_read_only_server_counts_as_away(valkey, redis_client):
    async with connected(valkey) as connection:
        await redis_client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LedgerAway):
                await connection.command("SET", "k", "v")
        finally:
            await redis_client.config_set("maxmemory", "0")


@pytest.mark.parametrize("url", ["http://x", "redis://", "127.0.0.1:6379"])
def test_a_url_that_is_none_of_redis(url):
    with pytest.raises(ConfigurationError, match="OBOL_REDIS_URL"):
        Address(url)


def test_credentials_are_decoded():
    address = Address("redis://user:p%40ss@host:7000/3")
    assert (address.username, address.password, address.port, address.database) == ("user", "p@ss", 7000, 3)
