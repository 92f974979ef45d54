"""A hold ahead of every response that may begin; larger while one speaks; settled when it is done.

The provider may begin a response by itself, when it hears that the caller has finished. So one hold is always there
that no response has taken yet, before anything is passed on after which a response could begin; and one more for each
that was asked for and has not begun. It covers the whole conversation as a prompt and a first step of output, and grows
with the conversation. The response that begins takes it, and the next one is asked for.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import NamedTuple

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.row import encode
from gateway.ledger.wallets import Extension, now_ms
from gateway.proxy.call import Call, Ending
from gateway.proxy.charging import priced_model, pricing_of, within_hold
from gateway.proxy.metering import Metered
from gateway.proxy.realtime.calls import SessionCalls
from gateway.proxy.rolling import LEDGER_RETRY_S, LEDGER_WAIT_S, STEP_MIN_TOKENS, why_ended
from gateway.wire.contract import Reading, RequestFacts
from gateway.wire.fields import count, mapping
from gateway.wire.openai_realtime import (
    BYTES_PER_TEXT_TOKEN,
    WINDOW_TOKENS,
    Amount,
    Conversation,
    Produced,
    ServerEvent,
    Settings,
    response_failure,
    response_usage,
)

SLACK = Amount(text=1_024, audio=600)
"""A hold ahead covers so much more than the conversation, a minute of sound, so that few additions ask for more."""
_HIDES_REASONING = re.compile(r"gpt-realtime-[2-9](?!\d)")
TURNS_MAX = 64
"""Responses of one session under way at once."""


class Ahead(NamedTuple):
    """A hold that no response has taken yet, and the prompt that it covers."""

    call: Call
    covers: Amount


class Turn:
    """One response under way."""

    def __init__(self, call: Call, prompt: Amount, held_tokens: int, limit_tokens: int) -> None:
        self.call = call
        self.prompt = prompt
        """At most."""
        self.held_tokens = held_tokens
        """Output tokens that its hold covers."""
        self.limit_tokens = limit_tokens
        self.produced = Produced()
        self.text_tokens = 0
        """Of its text, as far as it was counted."""
        self.counted = Amount()
        """What was produced at most when it was."""
        self.counted_tokens = 0
        """What that came to."""
        self.hidden_tokens = 0
        """Reasoning that may have been produced in silence."""
        self.poor = False
        """A larger hold was refused."""
        self.cut: ObolError | None = None
        """Why it was cancelled: nothing more of it is passed on."""
        self.heard = False
        """Something came of it since the last look."""
        self.began_at = Amount()
        self.prompt_known = Amount()
        self.prompt_text = ""
        self.in_conversation = True


class Responses:
    """Those of one session."""

    def __init__(self, calls: SessionCalls, conversation: Conversation) -> None:
        self._calls = calls
        self.conversation = conversation
        self._lock = asyncio.Lock()
        self._covering = asyncio.Lock()
        self._ahead: deque[Ahead] = deque()
        self.asked = 0
        """Responses asked for that have not begun."""
        self.turns: dict[str, Turn] = {}
        self._done: set[str] = set()
        self.model = calls.asked.model
        self._limit_tokens = WINDOW_TOKENS
        self.ending: Ending = "completed"
        """How a response that is done has ended: another way once the session is over."""
        self.freed = asyncio.Event()
        """A response has ended, so there may be money again."""

    def describe(self, settings: Settings) -> None:
        """The provider tells of the session."""
        self.model = settings.model or self.model
        self._limit_tokens = settings.max_output_tokens or WINDOW_TOKENS

    async def ready(self, *, asks: bool = False) -> None:
        """See to it that there is a hold for whatever may begin next. `asks`: for one more response, too.

        Raise ObolError where the wallet does not cover it, or LedgerAway.
        """
        if not self.model:  # a session that only transcribes has no responses
            return
        async with self._lock:
            wanted = max(1, self.asked + asks)
            if len(self.turns) + wanted > TURNS_MAX:
                raise ObolError("too_many_calls", f"this session has {len(self.turns)} responses under way")
            for at, ahead in enumerate(self._ahead):
                if not self.conversation.at_most().within(ahead.covers):
                    self._ahead[at] = await self._grown(ahead)
            while len(self._ahead) < wanted:
                self._ahead.append(await self._hold())
            self.asked += asks

    def not_begun(self) -> None:
        """The provider refuses something: perhaps a response that was asked for."""
        self.asked = max(0, self.asked - 1)

    def knows(self, response_id: str) -> bool:
        """It has begun, and may be done."""
        return response_id in self.turns or response_id in self._done

    async def begin(self, response_id: str, event: ServerEvent) -> Turn:
        """The provider has begun a response. Where there is no hold for it and none to be had, it is `cut`."""
        self.asked = max(0, self.asked - 1)
        async with self._lock:
            cut = None
            if self._ahead:
                ahead = self._ahead.popleft()
            elif not self.model:
                cut = ObolError("forward_model_not_supported", "this session names no model", param="model")
                ahead = Ahead(await self._unheld(), Amount())
            else:
                try:
                    ahead = await self._hold()
                except (ObolError, LedgerAway) as error:
                    cut = error if isinstance(error, ObolError) else why_ended(error)[1]
                    ahead = Ahead(await self._unheld(), Amount())
        response = mapping(event.response)
        limit_tokens = count(response.get("max_output_tokens")) or WINDOW_TOKENS
        prompt = self.conversation.at_most()
        turn = Turn(ahead.call, prompt, 0 if cut else self._afforded(ahead.call, prompt, limit_tokens), limit_tokens)
        turn.cut, turn.began_at = cut, self.conversation.added
        turn.in_conversation = response.get("conversation_id", "") is not None
        turn.prompt_known, turn.prompt_text = self.conversation.prompt_known(), self.conversation.prompt_text()
        self._calls.begun(turn.call)
        self.turns[response_id] = turn
        return turn

    async def cover(self, turn: Turn) -> ObolError | None:
        """Keep the hold ahead of what the response has produced; why not, where it is used up."""
        if not self._calls.reserves or turn.held_tokens >= turn.limit_tokens:
            return None
        async with self._covering:
            return None if turn.cut is not None else await self._cover(turn)

    async def _cover(self, turn: Turn) -> ObolError | None:
        used = self._used(turn)
        if used < turn.held_tokens - (0 if turn.poor else turn.held_tokens // 4):
            return None
        if not turn.poor and await self._extended(turn, max(2 * turn.held_tokens, used + STEP_MIN_TOKENS)) is None:
            return None
        turn.poor = True
        await self._recount(turn)
        used = self._used(turn)
        if used < turn.held_tokens:
            return None
        refusal = await self._extended(turn, used + STEP_MIN_TOKENS)
        if refusal is not None and self._ahead and not self.asked:  # what speaks comes before what may
            await self._give_back()
            refusal = await self._extended(turn, used + STEP_MIN_TOKENS)
        if refusal is None:
            return None
        turn.call.ending, turn.cut = why_ended(refusal)
        return turn.cut

    def pass_time(self, elapsed_ms: int) -> list[Turn]:
        """Time has passed: responses that are silent may be reasoning. Return those that are."""
        if not _HIDES_REASONING.search(self.model):
            return []
        silent = [turn for turn in self.turns.values() if not turn.heard]
        for turn in silent:
            turn.hidden_tokens += self._calls.parts.settings.hidden_output_tokens_per_s * elapsed_ms // 1000
        for turn in self.turns.values():
            turn.heard = False
        return silent

    async def done(self, response_id: str, event: ServerEvent) -> None:
        """The provider says that a response is done, and what it used. What it says twice counts once."""
        if response_id in self._done:
            return
        self._done.add(response_id)
        turn = self.turns.get(response_id) or await self.begin(response_id, event)
        usage, failed = response_usage(event), response_failure(event)
        reading = Reading(usage=usage, model=self.model, response_id=response_id, failed=failed)
        ending: Ending = "error_event" if failed else self.ending
        if turn.cut is not None:
            ending = "hold_lost" if turn.call.ending == "hold_lost" else "balance_exhausted"
        if usage is not None or failed:
            if usage is not None and turn.in_conversation:
                self.conversation.answered(usage, turn.began_at)
            metered = Metered(usage or Usage(), False, reading)
        else:
            metered = await self._estimate(turn, reading)
        await self._settle(response_id, turn, metered, ending)

    async def cut_off(self, ending: Ending) -> None:
        """The session is over: settle what was produced of the responses of which nothing more will be told."""
        for response_id, turn in list(self.turns.items()):
            reading = Reading(model=self.model, response_id=response_id, finished=False)
            await self._settle(response_id, turn, await self._estimate(turn, reading), ending)

    def release(self) -> None:
        """Give back what no response has taken."""
        while self._ahead:
            self._calls.release(self._ahead.popleft().call)

    def write_progress(self) -> None:
        """Write on the holds what is to be debited if this gateway dies. Raise LedgerAway."""
        parts = self._calls.parts
        for response_id, turn in self.turns.items():
            call, reading = turn.call, Reading(model=self.model, response_id=response_id)
            text_tokens = turn.produced.text_bytes // BYTES_PER_TEXT_TOKEN
            usage = within_hold(parts, call, self._usage(turn, 0, text_tokens), reading)
            model, principal = priced_model(parts, call, reading), call.principal
            priced = pricing_of(parts, call).price(
                call.provider_name, model, usage, None, principal.meter, charged=principal.charged
            )
            issued = parts.wallets.issue_extend(
                principal.wallet,
                call.request_id,
                call.held_nano,
                expires_ms=now_ms() + parts.settings.hold_ttl_s * 1000,
                progress=(priced.price, encode(call.row_so_far(usage, priced, model, reading))),
                spend=principal.spend,
            )
            issued.future.add_done_callback(_looked_at)

    async def _settle(self, response_id: str, turn: Turn, metered: Metered, ending: Ending) -> None:
        if metered.estimated and turn.in_conversation:
            self.conversation.produced(turn.produced.at_most(self.conversation.output_bytes_per_s))
        del self.turns[response_id]  # not before: who is cancelled while counting leaves it to `cut_off`
        await self._calls.settle(turn.call, metered, ending)
        self.freed.set()

    def _facts(self, prompt: Amount) -> RequestFacts:
        return RequestFacts(model=self._calls.asked.model or self.model, stream=True, at_most=prompt.usage())

    def _ceiling(self, prompt: Amount, output_tokens: int) -> int:
        return self._calls.ceiling(self._facts(prompt), prompt.text, output_tokens)

    def _step(self) -> int:
        return min(self._calls.parts.settings.hold_step_tokens, self._limit_tokens)

    def _afforded(self, call: Call, prompt: Amount, limit_tokens: int) -> int:
        """Output tokens that the hold of a call pays for: more than the first step, where the prompt is smaller."""
        low, high = 0, self._step()
        while high < limit_tokens and self._ceiling(prompt, high) <= call.held_nano:
            low, high = high, 2 * high
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._ceiling(prompt, middle) <= call.held_nano else (low, middle)
        return min(max(low, 1), limit_tokens)

    async def _hold(self) -> Ahead:
        covers = self.conversation.at_most().plus(SLACK)
        return Ahead(await self._calls.hold(self._facts(covers), self._ceiling(covers, self._step())), covers)

    async def _give_back(self) -> None:
        """Release what no response has taken, now."""
        async with self._lock:
            while self._ahead:
                await self._calls.released(self._ahead.popleft().call)

    async def _unheld(self) -> Call:
        """For a response that began though no hold is to be had: one of nothing, which its settle ends."""
        facts = self._facts(Amount())
        try:
            return await self._calls.hold(facts, 0)
        except (ObolError, LedgerAway):
            return self._calls.not_held(facts)

    async def _grown(self, ahead: Ahead) -> Ahead:
        covers = self.conversation.at_most().plus(SLACK)
        extension = await self._calls.extend(ahead.call, self._ceiling(covers, self._step()))
        if extension.kind != "extended":
            raise _not_covered(extension)
        ahead.call.facts = self._facts(covers)
        return Ahead(ahead.call, covers)

    async def _extended(self, turn: Turn, output_tokens: int) -> Extension | LedgerAway | None:
        """Ask for a hold of so much output, for as long as Redis is away up to LEDGER_WAIT_S; why not, if refused."""
        tokens = min(output_tokens, turn.limit_tokens)
        amount_nano = self._ceiling(turn.prompt, tokens)
        until_s = time.monotonic() + LEDGER_WAIT_S
        while True:
            try:
                extension = await self._calls.extend(turn.call, amount_nano)
                break
            except LedgerAway as away:
                if self._used(turn) < turn.held_tokens or time.monotonic() > until_s:
                    return away
                await asyncio.sleep(LEDGER_RETRY_S)
        if extension.kind != "extended":
            return extension
        turn.held_tokens = tokens
        return None

    def _used(self, turn: Turn) -> int:
        """At most. Exact as far as it was counted."""
        since = turn.produced.at_most(self.conversation.output_bytes_per_s).minus(turn.counted)
        return turn.counted_tokens + sum(since) + turn.hidden_tokens

    async def _recount(self, turn: Turn) -> None:
        bytes_per_s = self.conversation.output_bytes_per_s
        turn.counted = turn.produced.at_most(bytes_per_s)
        spoken = turn.produced.audio_tokens(bytes_per_s)
        turn.text_tokens += await self._count(turn.produced.uncounted())
        turn.counted_tokens = spoken + turn.text_tokens

    async def _count(self, words: str) -> int:
        return await self._calls.parts.counter.count(words, self.model)

    async def _estimate(self, turn: Turn, reading: Reading) -> Metered:
        """What it used, counted here."""
        await self._recount(turn)
        return Metered(self._usage(turn, await self._count(turn.prompt_text), turn.text_tokens), True, reading)

    def _usage(self, turn: Turn, added_text_tokens: int, output_text_tokens: int) -> Usage:
        known, spoken = turn.prompt_known, turn.produced.audio_tokens(self.conversation.output_bytes_per_s)
        return Usage(
            input_tokens=min(sum(known) + added_text_tokens, WINDOW_TOKENS),
            input_audio_tokens=min(known.audio, WINDOW_TOKENS),
            input_image_tokens=known.image,
            output_tokens=spoken + output_text_tokens,
            output_audio_tokens=spoken,
        )


def _not_covered(extension: Extension) -> ObolError:
    error = why_ended(extension)[1]
    why = "the balance does not cover another response in this conversation"
    return ObolError(error.code, why, retry_after_s=error.retry_after_s, details=error.details)


def _looked_at(reply: asyncio.Future[object]) -> None:
    """The next write comes soon enough, whatever became of this one."""
    if not reply.cancelled():
        reply.exception()
