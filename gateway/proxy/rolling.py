"""The hold of one stream: the prompt and a first step of output, and more before what was produced can have cost it.

How much was produced is bounded from the bytes (`wire/stream_text.py`), which runs several times too high. So a larger
hold is asked for early, each time for twice as much, and only where it is refused the text is counted exactly and the
smallest step is asked for. The relay goes on meanwhile, as long as the bound is below the hold; then it waits, and
reads nothing from the provider. Where that step is refused too, the stream ends: `Exhausted`.

Of reasoning that a stream does not show nothing can be counted: while the stream is silent, time counts instead.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from gateway.core.money import format_nano
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import Extension, now_ms
from gateway.proxy.call import Call
from gateway.proxy.charging import pricing_of
from gateway.proxy.limits import SPEND_LIMIT_EXCEEDED
from gateway.proxy.metering import Watch
from gateway.proxy.parts import Parts
from gateway.wire.contract import ALL, RequestFacts
from gateway.wire.framing import WHOLE
from gateway.wire.stream_text import WINDOW_BYTES, OpenEvent, StreamText

STEP_MIN_TOKENS = 64
"""The smallest step, where a larger one is refused."""
ROOM_TOKENS = 16
"""An exact count that leaves less room than this is as good as none."""
SILENT_BYTES = 128
"""What keeps a silent stream alive - pings, comments - is less than this between two looks."""
LEDGER_WAIT_S = 30.0
"""How long a stream waits for a ledger that is away, once its hold is used up."""
LEDGER_RETRY_S = 0.1
WINDOWS_MAX = 2
"""Where the counting does not keep up, the relay waits: as many times the window is kept at most."""
_NEVER_BYTES = 2**60
_OWN_TOKENIZER = ("gpt-", "chatgpt-", "o1", "o3", "o4", "codex-", "davinci", "babbage")

Cut = Literal["balance_exhausted", "hold_lost"]
ROLLING_FORMATS = frozenset(
    {
        "openai_chat",
        "openai_completions",
        "openai_responses",
        "anthropic_messages",
        "gemini_stream",
        "cohere_v1_chat",
        "cohere_v2_chat",
    }
)


class Exhausted(Exception):
    """The stream has to end. `ending` is the call's, `error` what the caller is told."""

    def __init__(self, hold: RollingHold, ending: Cut, error: ObolError) -> None:
        super().__init__(error.message)
        self.hold = hold
        self.ending = ending
        self.error = error


def first_step(parts: Parts, format_name: str, facts: RequestFacts) -> int | None:
    """Output tokens that the hold of a call covers at first; None where it covers all that the call can produce."""
    step = parts.settings.hold_step_tokens
    if not facts.stream or facts.free or facts.usage is not None or format_name not in ROLLING_FORMATS:
        return None
    asked = facts.max_output_tokens
    return None if asked is not None and asked * facts.choices <= step else step


class RollingHold:
    """Ask `covers_all_but` when `text.left_bytes` is used up, and wait for `cover` where not; `close` at the end."""

    def __init__(self, parts: Parts, call: Call, held_tokens: int) -> None:
        self._parts = parts
        self._call = call
        self.held_tokens = held_tokens
        self._held_nano = call.held_nano
        """As Redis said last. `call.held_nano` is the most that it held: what was passed on under that is billed."""
        asked = call.facts.max_output_tokens
        self._limit_tokens = ALL if asked is None else asked * call.facts.choices
        self.text = StreamText(WHOLE, str)
        self._watch: Watch | None = None
        self._base_tokens = 0
        self.hidden_tokens = 0
        """Reasoning that may have been produced in silence."""
        self._prompt: Usage | None = None
        """As the provider told it."""
        self._poor = False
        self._refusal: Extension | LedgerAway | None = None
        self._work: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._relay_waits = False
        self._text_gone = False
        self._seen_bytes = 0
        self.open_event = OpenEvent(0, b"", b"")
        """Where the client stood when the hold did not cover a piece."""
        self.exhausted: Exhausted | None = None

    def attach(self, watch: Watch, text: StreamText) -> None:
        """The answer has begun."""
        self._watch, self.text = watch, text
        self.covers()

    def used_tokens(self) -> int:
        """What can have been produced so far, at most."""
        text_tokens = self.text.tokens_max()
        if self._text_gone and self._watch is not None:
            text_tokens = self._watch.seen_bytes
        return self._base_tokens + self.hidden_tokens + text_tokens

    def holds(self, held_nano: int) -> None:
        """What Redis says that it holds; 0: nothing any more. Where it has lost a part of what it had acknowledged, the
        stream has to be covered anew, or ends."""
        fell, self._held_nano = held_nano < self._held_nano, held_nano
        if not fell:
            return
        self.held_tokens = self._afforded()
        if self._call.limit is not None and not self.covers() and self._stopping is None:
            self._stopping = self._parts.background.start(self._cover_or_stop(), "cover a stream anew")

    def covers(self) -> bool:
        """Whether the hold covers what came so far. Has it extended in time, and counted now and then."""
        if self.held_tokens >= self._limit_tokens:  # the provider produces no more
            self._let_text_go()
            return True
        used, size_bytes, near = self.used_tokens(), 0 if self._text_gone else self.text.size_bytes, self._near_tokens
        if self._work is None and (size_bytes >= WINDOW_BYTES or used >= near):
            self._work = self._parts.background.start(self._make_room(), "extend a hold")
            self._work.add_done_callback(self._worked)
        until = near if self._work is None else self.held_tokens
        # Unless a larger hold was refused before, a look may come a step late: it costs more than all else here.
        late = 0 if self._poor or self._work is not None else self._parts.settings.hold_step_tokens
        self.text.left_bytes = max(1, min(until - used + late, WINDOW_BYTES - size_bytes))
        return used < self.held_tokens and size_bytes < WINDOWS_MAX * WINDOW_BYTES

    def covers_end(self, piece_bytes: int) -> bool:
        """The same for the last piece: what the provider has told at the end is exact."""
        watch = self._watch
        assert watch is not None
        if watch.seen_bytes + self.hidden_tokens < self.held_tokens:  # the bytes alone are covered
            return True
        usage = watch.reading_so_far().usage
        if usage is not None and usage.output_tokens is not None and usage.output_tokens <= self.held_tokens:
            return True
        return self.covers_all_but(piece_bytes)

    def covers_all_but(self, piece_bytes: int) -> bool:
        """The same for the relay, which sends the latest piece only if it is covered. To be asked before it waits."""
        covered = self.covers()
        if not covered:
            self.open_event = self.text.open_event(piece_bytes)
        return covered

    async def cover(self) -> None:
        """Wait until the hold covers what came. Raise Exhausted."""
        self._relay_waits = True
        try:
            await self._cover()
        finally:
            self._relay_waits = False

    async def _cover(self) -> None:
        while not self.covers():
            assert self._work is not None
            await asyncio.wait([self._work])
            if self._refusal is not None and self.used_tokens() >= self.held_tokens:
                self.exhausted = Exhausted(self, *why_ended(self._refusal))
                raise self.exhausted

    def pass_time(self, elapsed_ms: int) -> None:
        """Time has passed since the last time. A silent stream may be reasoning: that counts as output."""
        seen = self._watch.seen_bytes if self._watch is not None else 0
        silent, self._seen_bytes = seen - self._seen_bytes < SILENT_BYTES, seen
        most = min(self._call.facts.hidden_tokens_max, self._limit_tokens)
        if not silent or self.hidden_tokens >= most:
            return
        rate = self._parts.settings.hidden_output_tokens_per_s
        self.hidden_tokens = min(most, self.hidden_tokens + rate * elapsed_ms // 1000)
        if not self.covers() and self._stopping is None:
            self._stopping = self._parts.background.start(self._cover_or_stop(), "cover a silent stream")

    async def close(self) -> None:
        """Nothing is asked for any more."""
        for task in (self._work, self._stopping):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                await asyncio.wait([task])

    @property
    def _near_tokens(self) -> int:
        """From here on a larger hold is asked for: early, unless it was refused last time."""
        return self.held_tokens if self._poor else self.held_tokens - self.held_tokens // 4

    def _let_text_go(self) -> None:
        """The hold covers all that was asked for: from here on nothing is kept to be counted."""
        self.text.left_bytes = _NEVER_BYTES
        if self._watch is not None:
            self._text_gone = True
            self._watch.let_text_go()

    def _worked(self, _: asyncio.Task[None]) -> None:
        self._work = None

    async def _cover_or_stop(self) -> None:
        try:
            await self._cover()
        except Exhausted as exhausted:
            if self._text_gone:  # it is not known where the client stands: nothing can be told
                self.exhausted = None
            if not self._relay_waits:  # else it ends the stream itself
                self._call.stop(exhausted.ending)
        finally:
            self._stopping = None

    async def _make_room(self) -> None:
        self._refusal = None
        try:
            if self.text.size_bytes >= WINDOW_BYTES or self.used_tokens() < self._near_tokens:
                await self._count()
            if self.used_tokens() < self._near_tokens:
                return
            if not self._poor and await self._extend(max(2 * self.held_tokens, self.used_tokens() + STEP_MIN_TOKENS)):
                return
            self._poor = True
            await self._count()
            if self.used_tokens() + ROOM_TOKENS >= self.held_tokens:
                self._poor = not await self._extend(self.used_tokens() + STEP_MIN_TOKENS)
                if self._poor:
                    await self._take_rest()
        except LedgerAway as away:
            self._refusal = away

    async def _take_rest(self) -> None:
        """What was produced is billed, so what there still is goes into the hold. It may be enough for a while."""
        refusal, call = self._refusal, self._call
        if isinstance(refusal, Extension) and refusal.available_nano > 0:
            amount_nano = refusal.amount_nano + refusal.available_nano
            if (await extend(self._parts, call, amount_nano)).kind == "extended":
                self._held(amount_nano)
                self.held_tokens = max(self.held_tokens, self._afforded())

    def _held(self, amount_nano: int) -> None:
        self._held_nano = amount_nano
        self._call.held_nano = max(self._call.held_nano, amount_nano)

    async def _count(self) -> None:
        """Count the text exactly, and take what the provider itself has told so far for exact."""
        watch = self._watch
        if watch is None:
            return
        if self.text.framing is not WHOLE:
            await watch.count_text(self._parts.counter)
        usage = watch.reading_so_far().usage
        produced, told = self._with_margin(watch.counted_tokens), usage.output_tokens if usage else None
        self._base_tokens = max(produced, told or 0)
        if told:
            self.hidden_tokens = 0
        if usage is not None and usage.input_tokens is not None and self._prompt is None:
            self._prompt = usage
            self.held_tokens = max(self.held_tokens, self._afforded())

    def _with_margin(self, tokens: int) -> int:
        """Others' tokenizers make more tokens of a text than the ones that count here; rarely half as many again."""
        name = (self._call.facts.model or "").lower().rpartition("/")[2].removeprefix("ft:")
        return tokens if name.startswith(_OWN_TOKENIZER) else -(-tokens * 3 // 2)

    def _afforded(self) -> int:
        """Output tokens that the hold pays for."""
        low, high = 0, self.held_tokens + len(self._call.body) + 1
        while self._price(high) <= self._held_nano and high < self._limit_tokens:
            low, high = high, 2 * high
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._price(middle) <= self._held_nano else (low, middle)
        return low

    def _price(self, output_tokens: int) -> int:
        call = self._call
        return pricing_of(self._parts, call).ceiling(
            call.provider_name,
            call.facts,
            len(call.body),
            call.principal.meter,
            output_tokens=output_tokens,
            prompt=self._prompt,
        )

    async def _extend(self, output_tokens: int) -> bool:
        """Ask for a hold of so much output, for as long as Redis is away up to LEDGER_WAIT_S. Raise LedgerAway."""
        tokens = min(output_tokens, self._limit_tokens)
        amount_nano = self._price(tokens)
        if amount_nano <= self._held_nano:  # the price does not depend on the output, or has fallen
            self.held_tokens = max(self.held_tokens, tokens)
            return True
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LEDGER_WAIT_S
        while True:
            try:
                extension = await extend(self._parts, self._call, amount_nano)
                break
            except LedgerAway:
                if loop.time() > until_s:
                    raise
                await asyncio.sleep(LEDGER_RETRY_S)
        self._parts.metrics.hold_extensions.labels(extension.kind).inc()
        if extension.kind != "extended":
            self._refusal = extension
            self.holds(extension.amount_nano)
            return False
        self._held(extension.amount_nano)
        self.held_tokens = max(self.held_tokens, tokens)
        return True


async def extend(parts: Parts, call: Call, amount_nano: int) -> Extension:
    """Hold `amount_nano` for the call. A hold that Redis has lost is made again.

    What cannot be made again for want of money is `refused`, with nothing held. Raise LedgerAway, also for a wallet
    that is being restored.
    """
    wallet, expires_ms = call.principal.wallet, now_ms() + parts.settings.hold_ttl_s * 1000
    spend = call.principal.spend
    extension = await parts.wallets.extend(wallet, call.request_id, amount_nano, expires_ms=expires_ms, spend=spend)
    if extension.kind == "unknown":
        raise LedgerAway("the wallet is being restored")
    if extension.kind == "gone" and call.conclusion is None:  # else its settle may have been sent
        again = await parts.wallets.hold(
            wallet,
            call.request_id,
            amount_nano,
            expires_ms=expires_ms,
            descriptor=call.encoded_row(),
            spend=spend,
            again=True,
        )
        if again.kind == "held":
            parts.metrics.holds_again.inc()
            return Extension("extended", amount_nano)
        if again.kind == "unknown":
            raise LedgerAway("the wallet is being restored")
        if again.kind in ("insufficient", "reserved"):
            return Extension("refused", 0, again.kind, again.available_nano)
        if again.kind == "key_spent":
            return Extension("refused", 0, "key", again.available_nano)
    return extension


def why_ended(refusal: Extension | LedgerAway) -> tuple[Cut, ObolError]:
    """How a stream ends, and what the caller is told."""
    if isinstance(refusal, LedgerAway):
        why = "the ledger does not answer, so no more can be reserved for this stream"
        return "hold_lost", ObolError("ledger_unavailable", why, retry_after_s=1)
    if refusal.kind == "gone":
        return "hold_lost", ObolError("wallet_unavailable", "the hold of this stream was lost", retry_after_s=2)
    details = {"available": format_nano(refusal.available_nano)}
    if refusal.why == "key":
        return "balance_exhausted", ObolError("spend_limit_exceeded", SPEND_LIMIT_EXCEEDED, details=details)
    if refusal.why == "reserved":
        why = "what is left of the balance is reserved by calls in flight: this stream ends here"
        return "balance_exhausted", ObolError("balance_reserved", why, retry_after_s=1, details=details)
    why = "the balance is used up: this stream ends here"
    return "balance_exhausted", ObolError("insufficient_balance", why, details=details)
