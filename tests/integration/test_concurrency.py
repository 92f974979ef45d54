"""Three gateway processes, one ledger: nothing is overspent, done twice or sent twice, whoever is asked."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
import redis
from processes import gateway_processes
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.core.money import format_nano
from gateway.ledger.keys import Keys
from gateway.testing import FakeProvider, steering_header
from gateway.wire.formats import FORMATS

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROCESSES = 3
TOKEN_NANO = 20_000
Outcome = tuple[int, str | None]
"""Status and error code."""


class Fleet:
    """The processes, and a gateway of the test's own that made the merchant and reads the ledger."""

    def __init__(self, own: RunningGateway, urls: list[str]) -> None:
        self.own = own
        self.urls = urls

    async def post(self, url: str, credential: str, body: bytes, headers: dict[str, str]) -> Outcome:
        target = URL(f"{url}/v1/forward?u={CHAT}", encoded=True)
        sent = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json", **headers}
        async with self.own.session.post(target, data=body, headers=sent) as answer:
            received = await answer.read()
            return answer.status, orjson.loads(received)["error"]["code"] if answer.status >= 400 else None

    async def all_at_once(self, count: int, credential: str, body: bytes, headers: dict[str, str]) -> Counter[Outcome]:
        """`count` equal calls, dealt out to the processes in turn."""
        calls = (self.post(url, credential, body, headers) for url, _ in zip(cycle(self.urls), range(count)))
        return Counter(await asyncio.gather(*calls))

    async def ended(self, customer: NewConnection) -> Any:
        """The balance once no hold is open."""
        async with asyncio.timeout(20):
            while (balance := await self.own.balance(customer)).held_nano:
                await asyncio.sleep(0.02)
        return balance


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("processes")
    async with (
        FakeProvider() as provider,
        running_gateway(*engines, provider) as own,
        gateway_processes(PROCESSES, *engines, provider, directory) as urls,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        ) as session,
    ):
        await own.session.close()
        own.session = session
        yield Fleet(own, urls)


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(started: Fleet) -> Fleet:
    started.own.provider.clear()
    return started


class Watcher:
    """Reads the wallet over and over, in a thread: the least that was available, the most that was held."""

    FIELDS = ("cycle", "bundle", "prepaid", "overage", "held")

    def __init__(self, gateway: RunningGateway, customer: NewConnection) -> None:
        self._url = gateway.context.settings.redis_url
        self._key = Keys().wallet(customer.wallet.shard, customer.wallet.wallet_id)
        self._over = threading.Event()
        self._thread: asyncio.Future[None]
        self.least_available_nano = 2**60
        self.most_held_nano = 0
        self.readings = 0

    async def __aenter__(self) -> Watcher:
        self._thread = asyncio.ensure_future(asyncio.to_thread(self._watch))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await self._thread

    def _watch(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            while not self._over.is_set():
                cycle_, bundle, prepaid, overage, held = (int(x or 0) for x in client.hmget(self._key, self.FIELDS))
                available = cycle_ + bundle + prepaid - overage - held
                self.least_available_nano = min(self.least_available_nano, available)
                self.most_held_nano = max(self.most_held_nano, held)
                self.readings += 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_five_hundred_calls_never_overspend(fleet: Fleet, streamed: bool) -> None:
    """Check 1. Each admitted call uses all that it may, so exactly floor(B/h) can be paid, however they interleave."""
    output_tokens, affordable = 100, 40
    body = orjson.dumps(chat(max_tokens=output_tokens, **({"stream": True} if streamed else {})))
    hold_nano = (len(body) + output_tokens) * TOKEN_NANO
    customer = await fleet.own.customer(affordable * hold_nano + hold_nano // 2)
    headers = steering_header(prompt_tokens=len(body), completion_tokens=output_tokens, delay_ms=50)
    async with Watcher(fleet.own, customer) as seen:
        outcomes = await fleet.all_at_once(500, fleet.own.token_for(customer), body, headers)
    admitted = outcomes[200, None]
    refused = outcomes[402, "balance_reserved"] + outcomes[402, "insufficient_balance"]
    assert admitted <= affordable and admitted + refused == 500, outcomes
    assert admitted >= affordable - 1
    assert fleet.own.provider.request_count == admitted
    assert seen.least_available_nano >= 0
    assert seen.readings > 100 and seen.most_held_nano > hold_nano
    balance = await fleet.ended(customer)
    assert balance.cycle_nano == affordable * hold_nano + hold_nano // 2 - admitted * hold_nano
    rows = await fleet.own.rows("connection_id = $1", customer.connection_id)
    assert len(rows) == admitted and {row["charge_nano"] for row in rows} == {hold_nano}


async def test_small_calls_refused_for_reserves_are_told_so(fleet: Fleet) -> None:
    """The holds are large and the charges small: what is refused is told that the balance is only reserved."""
    body = orjson.dumps(chat(max_tokens=500))
    hold_nano = (len(body) + 500) * TOKEN_NANO
    customer = await fleet.own.customer(3 * hold_nano)
    headers = steering_header(prompt_tokens=1, completion_tokens=1, delay_ms=1_500)
    async with Watcher(fleet.own, customer) as seen:
        outcomes = await fleet.all_at_once(150, fleet.own.token_for(customer), body, headers)
    admitted = outcomes[200, None]
    assert outcomes == {(200, None): admitted, (402, "balance_reserved"): 150 - admitted}
    assert 1 <= admitted <= 3 and seen.most_held_nano <= 3 * hold_nano and seen.least_available_nano >= 0
    assert fleet.own.provider.request_count == admitted
    assert (await fleet.ended(customer)).cycle_nano == 3 * hold_nano - admitted * 2 * TOKEN_NANO


async def test_one_idempotency_key_fifty_times_at_once_is_one_call_and_one_debit(fleet: Fleet) -> None:
    """Check 22 across processes."""
    customer = await fleet.own.customer()
    credential, body = fleet.own.token_for(customer), orjson.dumps(chat())
    headers = {"Idempotency-Key": "order-17", **steering_header(prompt_tokens=30, completion_tokens=12, delay_ms=300)}
    outcomes = await fleet.all_at_once(50, credential, body, headers)
    late = outcomes[409, "request_in_progress"] + outcomes[409, "request_already_made"]
    assert (outcomes[200, None], late) == (1, 49), outcomes
    await fleet.ended(customer)
    again = await fleet.all_at_once(6, credential, body, headers)
    assert again == {(409, "request_already_made"): 6}
    other = await fleet.all_at_once(3, credential, orjson.dumps(chat(temperature=1)), headers)
    assert other == {(409, "request_id_conflict"): 3}
    assert fleet.own.provider.request_count == 1
    assert (await fleet.own.balance(customer)).cycle_nano == 25 * 10**9 - 42 * TOKEN_NANO
    assert len(await fleet.own.rows("connection_id = $1", customer.connection_id)) == 1


async def test_one_reported_request_fifty_times_at_once_is_one_debit(fleet: Fleet) -> None:
    customer = await fleet.own.customer()
    payload = {
        "request_id": "invoice-9",
        "connection_secret": customer.connection_secret,
        "product_secret": fleet.own.meter.meter_secret,
        "input_tokens": 700,
    }
    headers = {"Authorization": f"Bearer {fleet.own.merchant.secret_key}"}

    async def report(url: str) -> tuple[int, str]:
        async with fleet.own.session.post(f"{url}/v1/requests", json=payload, headers=headers) as answer:
            body = await answer.json()
            assert answer.status in (200, 201), body
            return answer.status, body["charge"]["amount"]

    answers = await asyncio.gather(*(report(url) for url, _ in zip(cycle(fleet.urls), range(50))))
    assert {amount for _, amount in answers} == {"0.0140000000"}
    assert (await fleet.own.balance(customer)).cycle_nano == 25 * 10**9 - 700 * TOKEN_NANO
    assert len(await fleet.own.rows("connection_id = $1", customer.connection_id)) == 1


FAULTS = ("reset_before_first_byte", "reset_mid_stream", "truncated", "error_event", "status:500", "status:503")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_sent_to_the_provider_twice(fleet: Fleet, fault: str, streamed: bool) -> None:
    """Whatever breaks, before or after the first byte. The connection is a warm one, which tempts to a retry."""
    customer = await fleet.own.customer()
    credential, url = fleet.own.token_for(customer), fleet.urls[0]
    assert await fleet.post(url, credential, orjson.dumps(chat()), {}) == (200, None)
    headers = steering_header(fault=fault, chunks=20)
    target = URL(f"{url}/v1/forward?u={CHAT}", encoded=True)
    try:
        async with fleet.own.session.post(
            target,
            json=chat(stream=streamed),
            headers={"Authorization": f"Bearer {credential}", **headers},
        ) as answer:
            await answer.read()
    except aiohttp.ClientError:
        pass  # a cut answer is cut for the client, too
    await fleet.ended(customer)
    assert fleet.own.provider.request_count == 2
    assert len(await fleet.own.rows("connection_id = $1", customer.connection_id)) == 2


async def spend_key(fleet: Fleet, method: str, path: str = "", **fields: Any) -> Any:
    """A call of the spend keys' API, of the last process: those that serve calls have to hear of it."""
    url, headers = f"{fleet.urls[-1]}/v1/spend_keys{path}", {"Authorization": f"Bearer {fleet.own.merchant.secret_key}"}
    async with fleet.own.session.request(method, url, json=fields, headers=headers) as answer:
        assert answer.status in (200, 201), await answer.read()
        return await answer.json()


async def test_a_hundred_calls_of_a_spend_key_do_not_pass_its_limit(fleet: Fleet) -> None:
    """Each admitted call costs all that was held for it, so exactly ten can be paid, however they interleave."""
    output_tokens, affordable = 100, 10
    body = orjson.dumps(chat(max_tokens=output_tokens))
    facts = FORMATS["openai_chat"].read_request(body, "/v1/chat/completions", "")
    hold_nano = fleet.own.parts.pricing.ceiling("openai", facts, len(body), None)
    limit = {"amount": format_nano(affordable * hold_nano + hold_nano // 2)[:-1], "cycle": "monthly"}
    key = await spend_key(fleet, "POST", name="ten calls", spend_limit=limit)
    headers = steering_header(prompt_tokens=len(body), completion_tokens=output_tokens, delay_ms=50)
    outcomes = await fleet.all_at_once(100, key["key"], body, headers)
    assert outcomes == {(200, None): affordable, (402, "spend_limit_exceeded"): 100 - affordable}
    async with asyncio.timeout(10):
        while (shown := await spend_key(fleet, "GET", f"/{key['spend_key_id']}"))["current_requests"] < affordable:
            await asyncio.sleep(0.02)
    assert shown["current_spend"] == shown["total_spend"] == format_nano(affordable * hold_nano)


async def test_every_process_hears_within_a_second_of_what_changes(fleet: Fleet) -> None:
    body, headers = orjson.dumps(chat(max_tokens=5)), steering_header(prompt_tokens=5, completion_tokens=5)
    key = await spend_key(fleet, "POST", name="changing")
    path, secret = f"/{key['spend_key_id']}", key["key"]

    async def becomes(expected: Outcome) -> None:
        async with asyncio.timeout(1):
            for url in fleet.urls:
                while await fleet.post(url, secret, body, headers) != expected:
                    await asyncio.sleep(0.02)

    await becomes((200, None))
    await spend_key(fleet, "PUT", path, request_limit={"count": 0, "cycle": "total"})
    await becomes((402, "spend_limit_exceeded"))
    await spend_key(fleet, "PUT", path, request_limit=None, status="paused")
    await becomes((403, "spend_key_inactive"))
    await spend_key(fleet, "PUT", path, status="active")
    await becomes((200, None))
    rotated = await spend_key(fleet, "POST", path + "/rotate")
    await becomes((401, "unauthorized"))
    secret = rotated["key"]
    await becomes((200, None))
    await spend_key(fleet, "DELETE", path)
    await becomes((401, "unauthorized"))
