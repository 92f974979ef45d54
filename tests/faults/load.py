"""Callers that keep calling, each in its own way, and remember what they were told."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from installation import Customer, Installation
from tests_support import CHAT, events_of

from gateway.testing import steering_header

CALLERS = 64
REPORTERS = 4
CALL_TIMEOUT_S = 40
PAUSE_AFTER_REFUSAL_S = 0.15
IDEMPOTENT_ATTEMPTS_MAX = 5
PROMPT_TOKENS_MAX = 40
BROKEN = 0
"""The status of an attempt whose answer did not come whole."""

KINDS = {"plain": 4, "stream": 6, "idempotent": 3}


@dataclass
class Attempt:
    """`status` BROKEN: the connection ended, or the answer was cut. `request_id`: as the answer's head told."""

    status: int
    code: str = ""
    request_id: str = ""
    ended_at_s: float = field(default_factory=time.time)


@dataclass
class Made:
    """One call, or one report, of a customer: `key` names it wherever it leaves a trace."""

    key: str
    kind: str
    customer: Customer
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def answered(self) -> Attempt | None:
        """The attempt that got its whole answer."""
        return next((attempt for attempt in self.attempts if attempt.status == 200), None)


class Load:
    """`begin`, and `end`, which waits until every caller has its answer."""

    def __init__(
        self,
        made: Installation,
        name: str,
        rng: random.Random,
        *,
        kinds: dict[str, int] | None = None,
        callers: int = CALLERS,
        reporters: int = REPORTERS,
    ) -> None:
        """`name` begins every key. `kinds`: how often each kind of call is made, in proportion."""
        self._kinds = kinds or KINDS
        self._callers = callers
        self._reporters = reporters
        self._installation = made
        self._name = name
        self._random = rng
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._customers: list[Customer] = []
        self._weights: list[int] = []
        self.calls: list[Made] = []
        self.in_flight = 0
        self._session: aiohttp.ClientSession

    @property
    def customers(self) -> list[Customer]:
        return self._customers

    @property
    def outcomes(self) -> Counter[tuple[str, int, str]]:
        """Attempts by kind, status and error code."""
        return Counter((call.kind, each.status, each.code) for call in self.calls for each in call.attempts)

    async def begin(self) -> None:
        """Make the customers, and start the callers."""
        make = self._installation.customer
        self._customers = [
            await make(500 * 10**9),
            await make(300 * 10**9, meter="graduated"),
            await make(2_000_000, limit_nano=50 * 10**9),  # overage from the first call on
            await make(120_000_000, lasting=False),
            await make(60_000_000, meter="graduated", lasting=False),
        ]
        self._weights = [6, 5, 3, 1, 1]
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        self._tasks = [asyncio.create_task(self._call_on(number)) for number in range(self._callers)]
        self._tasks += [asyncio.create_task(self._report_on(number)) for number in range(self._reporters)]

    async def end(self) -> None:
        self._over.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._session.close()

    async def abandon(self) -> None:
        """End it without waiting for answers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def _new(self, key: str, kind: str, rng: random.Random) -> Made:
        weights = self._weights
        if kind == "report":  # it is debited whatever the balance: of those who may owe
            weights = [
                weight if customer.lasting else 0 for weight, customer in zip(weights, self._customers, strict=True)
            ]
        (customer,) = rng.choices(self._customers, weights)
        call = Made(key, kind, customer, rng.randint(1, PROMPT_TOKENS_MAX), rng.randint(4, 20))
        self.calls.append(call)
        return call

    async def _call_on(self, number: int) -> None:
        rng = random.Random(self._random.random())
        for count in range(1_000_000):
            if self._over.is_set():
                return
            (kind,) = rng.choices(list(self._kinds), list(self._kinds.values()))
            call = self._new(f"{self._name}-{number}-{count}", kind, rng)
            chunk_delay_ms = rng.randint(40, 110)  # shorter calls fill both cores, and who starts again waits for them
            for _ in range(IDEMPOTENT_ATTEMPTS_MAX if kind == "idempotent" else 1):
                attempt = await self._attempt(call, chunk_delay_ms)
                call.attempts.append(attempt)
                if attempt.status == 200 or attempt.status == 402:
                    break
                await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)
            if call.attempts[-1].status == 402:
                await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)

    async def stream(self, key: str, duration_s: float) -> Made:
        """One stream of so long, of a customer who can pay for it."""
        call = Made(key, "stream", self._customers[0], prompt_tokens=10, completion_tokens=40)
        self.calls.append(call)
        call.attempts.append(await self._attempt(call, round(1_000 * duration_s / call.completion_tokens)))
        return call

    async def _attempt(self, call: Made, chunk_delay_ms: int) -> Attempt:
        self.in_flight += 1
        try:
            return await self._sent(call, chunk_delay_ms)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Attempt(BROKEN, type(error).__name__)
        finally:
            self.in_flight -= 1

    async def _sent(self, call: Made, chunk_delay_ms: int) -> Attempt:
        streamed = call.kind == "stream"
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": f"{call.key} says what the weather was like yesterday"}],
            "max_tokens": 64,
        }
        headers = {
            "Authorization": f"Bearer {call.customer.token}",
            "x-lava-metadata": json.dumps({"call": call.key}),
            **steering_header(
                prompt_tokens=call.prompt_tokens,
                completion_tokens=call.completion_tokens,
                chunks=call.completion_tokens,
                chunk_delay_ms=chunk_delay_ms,
                delay_ms=chunk_delay_ms if streamed else 10 * chunk_delay_ms,
            ),
        }
        if call.kind == "idempotent":
            headers["Idempotency-Key"] = call.key
        if streamed:
            body["stream"] = True
        url = f"{self._installation.up.url}/v1/forward?u={CHAT}"
        async with self._session.post(url, json=body, headers=headers) as answer:
            received = await answer.read()
            return _told(answer, received, call, streamed)

    async def _report_on(self, number: int) -> None:
        """A report is sent again until it is answered: it must then be there exactly once."""
        rng = random.Random(self._random.random())
        for count in range(1_000_000):
            if self._over.is_set():
                return
            call = self._new(f"{self._name}-report-{number}-{count}", "report", rng)
            while not call.answered:
                call.attempts.append(await self._report(call))
                await asyncio.sleep(0.05 if call.answered else PAUSE_AFTER_REFUSAL_S)

    async def _report(self, call: Made) -> Attempt:
        payload = {
            "request_id": call.key,
            "connection_secret": call.customer.made.connection_secret,
            "product_secret": call.customer.meter.meter_secret,
            "input_tokens": call.prompt_tokens,
            "output_tokens": call.completion_tokens,
        }
        headers = {"Authorization": f"Bearer {self._installation.merchant.secret_key}"}
        url = f"{self._installation.up.url}/v1/requests"
        try:
            async with self._session.post(url, json=payload, headers=headers) as answer:
                told = await answer.json()
                if answer.status in (200, 201):
                    return Attempt(200, request_id=call.key)
                return Attempt(answer.status, told["error"]["code"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Attempt(BROKEN, type(error).__name__)


def _told(answer: aiohttp.ClientResponse, received: bytes, call: Made, streamed: bool) -> Attempt:
    """What an answer that came to its end says. The tokens in it must be those that the provider was told to use."""
    request_id = answer.headers.get("x-lava-request-id", "")
    if answer.status != 200:
        error: dict[str, Any] = json.loads(received)["error"]
        return Attempt(answer.status, str(error.get("code") or error.get("type")), request_id)
    if streamed:
        events = events_of(received)
        if not events or events[-1] != "[DONE]" or any("error" in event for event in events[:-1]):
            return Attempt(BROKEN, "cut stream", request_id)
    else:
        usage = json.loads(received)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (call.prompt_tokens, call.completion_tokens)
    return Attempt(200, request_id=request_id)
