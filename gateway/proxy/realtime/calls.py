"""The calls of one session: each response and each transcription is one, with a hold, a settle and a row of its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import msgspec

from gateway.billing.principals import Principal
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import Extension, HoldResult
from gateway.providers import Provider
from gateway.proxy.call import Call, Ending
from gateway.proxy.conclusion import begin, conclude
from gateway.proxy.forward import granted, issue_hold
from gateway.proxy.metering import Metered
from gateway.proxy.parts import Parts
from gateway.proxy.rolling import extend
from gateway.wire.contract import RequestFacts
from gateway.wire.openai_realtime import REALTIME
from gateway.wire.target import Target

SWITCHED = 101
RELEASE_WAIT_S = 1.0
_NO_MORE = (
    "insufficient_balance",
    "spend_limit_exceeded",
    "spend_key_inactive",
    "connection_disabled",
    "connection_not_found",
    "unauthorized",
)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for as it connected: the same for every call of its session."""

    target: Target[Provider]
    principal: Principal
    model: str
    """"" for a session that only transcribes."""
    credential: bytes
    metadata: dict[str, str]
    protocols: tuple[str, ...]
    """Subprotocols offered, without the one that holds the credential."""

    @property
    def provider_name(self) -> str:
        provider = self.target.provider
        return provider.name if provider is not None else self.target.host


class SessionCalls:
    """Makes, holds and settles them. From its hold on, something always resolves a call."""

    def __init__(self, parts: Parts, asked: Asked) -> None:
        self.parts = parts
        self.asked = asked
        self.principal = asked.principal
        self.reserves = asked.principal.reserves
        self._pricing = parts.pricing.of(asked.principal)
        """Of the whole session: a call costs what it was held for."""

    def ceiling(self, facts: RequestFacts, text_bytes: int, output_tokens: int) -> int:
        """Nano-dollars that a call of these facts and so much output cannot exceed; 0 where nobody is charged."""
        if not self.reserves:
            return 0
        meter = self.asked.principal.meter
        return self._pricing.ceiling(self.asked.provider_name, facts, text_bytes, meter, output_tokens=output_tokens)

    async def hold(self, facts: RequestFacts, amount_nano: int) -> Call:
        """A new call, held. Raise ObolError where the wallet does not cover it, or LedgerAway."""
        if self.principal.rules is not None:
            await self._look_again()
        parts, call = self.parts, self._new(facts)
        if parts.journals.full:
            raise parts.journals.refusal()
        call.held_nano, call.held = amount_nano, True
        held = False
        try:
            result = await self._ask(call)
            if result.kind == "key_unopened":
                assert call.principal.spend is not None
                await parts.spend_counters.open(call.principal.wallet, call.principal.spend)
                result = await self._ask(call)
            granted(parts, call, result)
            held = True
        finally:
            if not held and call.held:  # it may exist, whatever the answer
                self.release(call)
        parts.live.add(call)
        return call

    async def _ask(self, call: Call) -> HoldResult:
        return await self.parts.wallets.held(issue_hold(self.parts, call))

    async def _look_again(self) -> None:
        """A session outlives what was allowed when it began: its spend key may have been changed, paused or revoked.

        Raise ObolError."""
        self.principal = await self.parts.principals.principal(self.asked.credential.decode())
        if self.principal.rules is not None:
            self.principal.rules.check_usable(time.time_ns() // 1_000 + self.principal.merchant.clock_offset_us)

    def not_held(self, facts: RequestFacts) -> Call:
        """A call that began although there was no hold: its settle debits it without one."""
        call = self._new(facts)
        call.held = True
        return call

    def begun(self, call: Call) -> None:
        """The provider is at work on it: from here on it is settled, not released."""
        call.created_us, call.started_at = time.time_ns() // 1_000, time.perf_counter()
        call.dispatched_at, call.http_status = call.started_at, SWITCHED
        call.descriptor()

    async def extend(self, call: Call, amount_nano: int) -> Extension:
        """Hold as much for the call as that. Raise LedgerAway."""
        if amount_nano <= call.held_nano:
            return Extension("extended", call.held_nano)
        extension = await extend(self.parts, call, amount_nano)
        self.parts.metrics.hold_extensions.labels(extension.kind).inc()
        if extension.kind == "extended":
            call.held_nano = max(call.held_nano, extension.amount_nano)
        return extension

    async def settle(self, call: Call, metered: Metered, ending: Ending) -> None:
        """Settle what was used: the settle has left for Redis, or a background task sees to it."""
        call.metered, call.ending = metered, ending
        try:
            with suppress(LedgerAway):
                await begin(self.parts, call)
        finally:
            if call.settling is None:
                self.parts.background.start(conclude(self.parts, call), "conclude")

    def release(self, call: Call) -> None:
        """Give back the hold of a call that never began."""
        self.parts.background.start(conclude(self.parts, call), "release")

    async def released(self, call: Call) -> None:
        """The same, and wait for it, but not for a Redis that is away."""
        await asyncio.wait([self.parts.background.start(conclude(self.parts, call), "release")], timeout=RELEASE_WAIT_S)

    def check_model(self, model: str) -> None:
        """Raise ObolError `forward_model_not_supported` for a model that could not be charged for, and
        `spend_key_not_allowed` for one that is none of the spend key's."""
        asked, facts = self.asked, RequestFacts(model=model)
        if self.principal.rules is not None:
            self.principal.rules.check_model(asked.provider_name, model)
        self._pricing.check_model(asked.provider_name, facts, asked.principal.meter, charged=self.reserves)

    def check_responses(self, model: str) -> None:
        """The same, and for one whose price is for the time that a session takes, which no response tells."""
        self.check_model(model)
        price = self._pricing.book.find(self.asked.provider_name, model)
        rates = price.standard.rates if price is not None else None
        if rates is not None and rates.input_mtok is None and rates.output_mtok is None:
            why = f"the model {model!r} is billed by time, which cannot be metered in a realtime session"
            raise ObolError("forward_model_not_supported", why, param="model")

    def _new(self, facts: RequestFacts) -> Call:
        asked = self.asked
        call = Call("GET", self.parts.request_ids)
        call.target, call.provider_name, call.principal = asked.target, asked.provider_name, self.principal
        call.credential, call.metadata = asked.credential, asked.metadata
        call.format, call.facts, call.pricing = REALTIME, facts, self._pricing
        call.own_key = asked.principal.provider_key
        return call


def unpaid(error: ObolError) -> bool:
    """There is no money for more, and waiting for calls in flight would not help."""
    return error.code in _NO_MORE
