"""The cache of principals: what a change, an age, a refusal or a race does to it."""

from __future__ import annotations

import asyncio

import pytest

from gateway.billing import principals
from gateway.billing.principals import Cache
from gateway.errors import ObolError


def loader(value, merchant="mer_1", calls=None, wait=None):
    async def load():
        if calls is not None:
            calls.append(value)
        if wait is not None:
            await wait.wait()
        if isinstance(value, Exception):
            raise value
        return merchant, value

    return load


@pytest.fixture
def clock(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(principals.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def cache():
    made = Cache(entries_max=3, ttl_s=60)
    made.hearing(True)
    return made


async def test_a_value_is_kept_until_it_is_old(cache, clock):
    await cache.load("k", loader("v"))
    assert cache.get("k") == "v"
    clock[0] += 61
    assert cache.get("k") is None


async def test_without_the_channel_a_value_is_good_for_a_second(cache, clock):
    await cache.load("k", loader("v"))
    cache.listening = False
    clock[0] += 0.9
    assert cache.get("k") == "v"
    clock[0] += 0.2
    assert cache.get("k") is None


async def test_a_change_forgets_its_merchant_only(cache, clock):
    await cache.load("a", loader("A", "mer_1"))
    await cache.load("b", loader("B", "mer_2"))
    cache.forget("mer_1")
    assert (cache.get("a"), cache.get("b")) == (None, "B")


async def test_a_load_that_a_change_overtook_is_not_kept(cache, clock):
    gate = asyncio.Event()
    loading = asyncio.ensure_future(cache.load("k", loader("stale", wait=gate)))
    for _ in range(3):  # the load has begun
        await asyncio.sleep(0)
    cache.forget("mer_1")
    gate.set()
    assert await loading == "stale"
    assert cache.get("k") is None


async def test_losing_or_finding_the_channel_forgets_all(cache, clock):
    await cache.load("k", loader("v"))
    cache.hearing(False)
    assert cache.get("k") is None


async def test_loads_of_one_key_are_one(cache, clock):
    calls: list[str] = []
    gate = asyncio.Event()
    waiting = [asyncio.ensure_future(cache.load("k", loader("v", calls=calls, wait=gate))) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # one who gives up does not take the others' load along
    gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert found[1:] == ["v"] * 19
    assert calls == ["v"]


async def test_a_refusal_is_remembered_for_a_second_and_forgotten_by_a_change(cache, clock):
    refusal = ObolError("unauthorized", "no")
    with pytest.raises(ObolError):
        await cache.load("k", loader(refusal))
    with pytest.raises(ObolError):
        cache.get("k")
    clock[0] += 1.1
    assert cache.get("k") is None
    with pytest.raises(ObolError):
        await cache.load("k", loader(refusal))
    cache.forget("mer_9")
    assert cache.get("k") is None


async def test_an_outage_is_not_remembered(cache, clock):
    with pytest.raises(ObolError):
        await cache.load("k", loader(ObolError("store_unavailable", "away")))
    assert cache.get("k") is None


async def test_it_is_bounded(cache, clock):
    for number in range(10):
        await cache.load(f"k{number}", loader(number))
    assert len(cache._values) == 3
    assert sum(len(keys) for keys in cache._keys_of.values()) == 3


AWAY = ObolError("store_unavailable", "the database is not reachable", retry_after_s=1)


async def test_an_old_value_is_used_while_the_store_is_away(cache, clock):
    calls = []
    await cache.load("k", loader("v"))
    clock[0] += 61
    assert cache.get("k") is None
    assert await cache.load("k", loader(AWAY, calls=calls)) == "v"
    assert cache.get("k") == "v", "and for a moment without asking again"
    clock[0] += principals.OLD_RETRY_S + 0.1
    assert cache.get("k") is None
    assert await cache.load("k", loader("new")) == "new"
    assert len(calls) == 1


async def test_an_old_value_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(principals, "OLD_WAIT_S", 0.01)
    monkeypatch.setattr(principals, "LOAD_WAIT_S", 0.02)
    cache = Cache(entries_max=3, ttl_s=0.01)
    cache.hearing(True)
    never = asyncio.Event()
    await cache.load("k", loader("v"))
    await asyncio.sleep(0.02)
    assert cache.get("k") is None
    assert await cache.load("k", loader("late", wait=never)) == "v"
    with pytest.raises(ObolError) as refused:
        await cache.load("unseen", loader("late", wait=never))
    assert (refused.value.code, refused.value.retry_after_s) == ("store_unavailable", 1)
    never.set()
    assert await cache.load("k", loader("later")) == "late", "the load under way is the one that counts"


async def test_an_old_value_is_not_used_once_a_change_was_heard_or_may_have_been_missed(cache, clock):
    await cache.load("k", loader("v"))
    await cache.load("r", loader("v2"))
    clock[0] += 61
    wait = asyncio.Event()
    asked = asyncio.create_task(cache.load("k", loader(AWAY, wait=wait)))
    await asyncio.sleep(0)
    cache.forget("mer_1")
    wait.set()
    with pytest.raises(ObolError):
        await asked
    cache.listening = False
    with pytest.raises(ObolError):
        await cache.load("r", loader(AWAY))


async def test_no_old_value_stands_against_a_refusal(cache, clock):
    await cache.load("k", loader("v"))
    clock[0] += 61
    with pytest.raises(ObolError) as refused:
        await cache.load("k", loader(ObolError("unauthorized", "revoked")))
    assert refused.value.code == "unauthorized"
