"""What follows from what a Redis server says of itself."""

from __future__ import annotations

import hiredis
import pytest

from gateway.ledger.server import Server


def told(appendfsync: object, **info: str) -> Server:
    text = "# Server\r\n" + "".join(f"{name}:{value}\r\n" for name, value in info.items())
    return Server.told(text.encode(), appendfsync)


@pytest.mark.parametrize(
    ("aof_enabled", "appendfsync", "replicas", "may_lose"),
    [
        ("1", "always", "0", False),
        ("1", "always", "1", True),  # a failover to it may lose what it had not yet got
        ("1", "everysec", "0", True),
        ("1", "no", "0", True),
        ("0", "always", "0", True),
        ("1", None, "0", True),  # it does not tell
    ],
)
def test_whether_it_may_lose_what_it_acknowledged(aof_enabled, appendfsync, replicas, may_lose):
    setting = [b"appendfsync", appendfsync.encode()] if appendfsync else hiredis.ReplyError("NOPERM")
    server = told(setting, role="master", aof_enabled=aof_enabled, connected_slaves=replicas)
    assert server.may_lose is may_lose
    assert (server.fsync, server.replicas, server.role) == (appendfsync, int(replicas), "master")


def test_a_server_that_tells_nothing_may_lose_everything():
    assert Server.told(b"", []).may_lose
    assert Server.told(b"\xff:\xff\r\nconnected_slaves:\r\n", None).replicas == 0


def test_a_replica_that_has_left_may_still_be_promoted():
    always = [b"appendfsync", b"always"]
    before = told(always, run_id="a", aof_enabled="1", connected_slaves="1")
    after = told(always, run_id="a", aof_enabled="1", connected_slaves="0").after(before)
    assert (after.may_lose, after.replicas) == (True, 0)
    assert told(always, run_id="a", aof_enabled="1").after(after).may_lose
    assert not told(always, run_id="b", aof_enabled="1").after(after).may_lose
