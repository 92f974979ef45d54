"""Names become checked addresses: what is kept, what is refused, and what a resolver that hangs can do (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from gateway.errors import ObolError
from gateway.proxy import resolver as module
from gateway.proxy.resolver import NotSent, Resolver

PUBLIC = "93.184.215.14"


def info(address: str, port: int = 443):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, 6, "", (address, port)


class Names:
    """Answers each look-up of a name with its next list of addresses, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): listed for name, listed in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int):
        self.asked.append(host)
        listed = self.answers.get(host)
        if listed is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info(address, port) for address in (listed.pop(0) if len(listed) > 1 else listed[0])]


class Hanging:
    """Look-ups that end when `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int):
        self.asked.append(host)
        self.release.wait(20)
        return [info(PUBLIC, port)]


async def ask(resolver: Resolver, host: str = "api.acme.dev", policy="own") -> list[str]:
    return [info[4][0] for info in await resolver.addresses(host, 443, policy)]


async def test_an_answer_is_kept_for_its_time_and_asked_for_once():
    names = Names(api_acme_dev=[[PUBLIC], ["1.1.1.1"]])
    resolver = Resolver(cache_s=0.05, lookup=names)
    assert await asyncio.gather(*(ask(resolver) for _ in range(20))) == [[PUBLIC]] * 20
    assert await ask(resolver) == [PUBLIC]
    assert names.asked == ["api.acme.dev"]
    await asyncio.sleep(0.06)
    assert await ask(resolver) == ["1.1.1.1"]


async def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "CACHE_ENTRIES_MAX", 3)
    names = Names(**{f"h{number}_acme_dev": [[PUBLIC]] for number in range(5)})
    resolver = Resolver(cache_s=30, lookup=names)
    for number in (0, 1, 2, 3, 4, 4, 0):
        await ask(resolver, f"h{number}.acme.dev")
    assert len(resolver._answers) == 3
    assert names.asked == [f"h{number}.acme.dev" for number in (0, 1, 2, 3, 4, 0)]


async def test_an_unknown_name_is_the_callers_to_know_and_not_asked_for_again_at_once():
    names = Names()
    resolver = Resolver(cache_s=30, lookup=names)
    for _ in range(3):
        with pytest.raises(
            ObolError, match=r"api.acme.dev could not be resolved \(Name or service not known\)"
        ) as caught:
            await ask(resolver)
        assert caught.value.code == "upstream_failed"
    assert len(names.asked) == 1


@pytest.mark.parametrize("answer", [["10.0.0.1"], [PUBLIC, "10.0.0.1"], ["::1", PUBLIC], ["::ffff:10.0.0.1"]])
async def test_one_address_that_is_not_public_spoils_the_answer(answer):
    resolver = Resolver(cache_s=30, lookup=Names(api_acme_dev=[answer], api_openai_com=[answer]))
    with pytest.raises(NotSent) as caught:
        await ask(resolver)
    assert (caught.value.code, caught.value.param) == ("forward_target_invalid", "u")
    assert "10.0.0" not in caught.value.message and "::" not in caught.value.message
    with pytest.raises(ObolError) as caught:
        await ask(resolver, "api.openai.com", "provider")
    assert caught.value.code == "upstream_failed"
    assert await ask(resolver, policy="stand_in") == answer


async def test_hosts_that_the_operator_lists_may_be_private_but_no_metadata_service():
    names = Names(llm_corp_example=[["10.0.0.1"], ["169.254.169.254"]], api_acme_dev=[["10.0.0.1"]])
    resolver = Resolver(cache_s=0.01, private_hosts={"llm.corp.example"}, lookup=names)
    assert await ask(resolver, "llm.corp.example") == ["10.0.0.1"]
    with pytest.raises(NotSent):
        await ask(resolver)
    await asyncio.sleep(0.02)
    with pytest.raises(NotSent):
        await ask(resolver, "llm.corp.example")


async def test_all_addresses_are_checked_and_a_few_are_tried():
    many = [f"1.1.1.{number}" for number in range(40)]
    six = [f"2606:4700::{number}" for number in range(10)]
    resolver = Resolver(cache_s=30, lookup=Names(api_acme_dev=[six + many], bad_acme_dev=[[*many, "127.0.0.1"]]))
    assert await ask(resolver) == six[: module.ADDRESSES_OF_FAMILY_MAX] + many[: module.ADDRESSES_OF_FAMILY_MAX]
    with pytest.raises(NotSent):
        await ask(resolver, "bad.acme.dev")


async def test_a_look_up_that_hangs_blocks_neither_the_loop_nor_the_others():
    hanging = Hanging()
    resolver = Resolver(cache_s=30, lookup=hanging)
    longest_s, waiting = (
        0.0,
        [asyncio.ensure_future(ask(resolver, f"h{n}.acme.dev")) for n in range(module.LOOKUPS_MAX)],
    )
    for _ in range(10):
        began_s = time.perf_counter()
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.perf_counter() - began_s)
    assert longest_s < 0.05
    with pytest.raises(NotSent) as caught:  # names of a merchant's choice have used up theirs
        await ask(resolver, "more.acme.dev")
    assert (caught.value.code, caught.value.retry_after_s) == ("too_many_requests", 1)
    provider = asyncio.ensure_future(ask(resolver, "api.openai.com", "provider"))  # providers have threads of their own
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await ask(resolver, "h0.acme.dev")  # joins the look-up under way, and leaves it be
    hanging.release.set()
    assert await provider == [PUBLIC]
    assert await asyncio.gather(*waiting) == [[PUBLIC]] * module.LOOKUPS_MAX
    assert sorted(hanging.asked) == sorted(["api.openai.com", *(f"h{n}.acme.dev" for n in range(module.LOOKUPS_MAX))])
    assert await ask(resolver, "more.acme.dev") == [PUBLIC]


async def test_threads_do_not_outlive_the_process():
    hanging = Hanging()
    waiting = asyncio.ensure_future(ask(Resolver(cache_s=30, lookup=hanging)))
    while not hanging.asked:
        await asyncio.sleep(0.001)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "resolver"} == {True}
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    hanging.release.set()


async def test_the_systems_resolver_reads_the_hosts_file():
    resolver = Resolver(cache_s=30)
    assert set(await ask(resolver, "localhost", "stand_in")) <= {"127.0.0.1", "::1"}
    with pytest.raises(NotSent):
        await ask(resolver, "localhost")
