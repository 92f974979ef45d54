"""What is transcribed of the caller's speech: billed beside the responses, on another model, an item at a time.

While transcription is on, one hold is there for whatever was heard and not yet billed, and grows with it.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.proxy.call import Call, Ending
from gateway.proxy.metering import Metered
from gateway.proxy.realtime.calls import SessionCalls
from gateway.proxy.rolling import why_ended
from gateway.wire.contract import ALL, Reading, RequestFacts
from gateway.wire.openai_realtime import (
    INPUT_TOKENS_PER_S,
    TRANSCRIPT_TOKENS_PER_S_MAX,
    Conversation,
    ServerEvent,
    transcription_usage,
)

SLACK_US = 60_000_000
"""A hold covers so much more than was heard."""
SECOND_US = 1_000_000


class Transcripts:
    """Those of one session."""

    def __init__(self, calls: SessionCalls, conversation: Conversation) -> None:
        self._calls = calls
        self._conversation = conversation
        self._lock = asyncio.Lock()
        self._ahead: Call | None = None
        self._covers_us = 0
        """Sound since the session began that the hold covers."""
        self._billed_us = 0
        self.model: str | None = None
        self._awaited: deque[int] = deque()
        """Of each item that is being transcribed, the sound since the session began that it ends within."""

    @property
    def pending(self) -> int:
        """Items whose transcription is awaited."""
        return len(self._awaited)

    async def ready(self) -> None:
        """See to it that what was heard is covered. Raise ObolError where the wallet does not, or LedgerAway."""
        if self.model is None or (self._ahead is not None and self._conversation.heard_us <= self._covers_us):
            return
        async with self._lock:
            covers_us = self._conversation.heard_us + SLACK_US
            facts = self._facts(covers_us - self._billed_us)
            tokens = (covers_us - self._billed_us) * TRANSCRIPT_TOKENS_PER_S_MAX // SECOND_US
            amount_nano = self._calls.ceiling(facts, tokens, tokens)
            if self._ahead is None:
                self._ahead = await self._calls.hold(facts, amount_nano)
            else:
                extension = await self._calls.extend(self._ahead, amount_nano)
                if extension.kind != "extended":
                    raise why_ended(extension)[1]
            self._covers_us = covers_us

    def describe(self, model: str | None) -> None:
        """The provider tells what it transcribes with; None for nothing."""
        self.model = model
        if model is None:
            self.release()

    def committed(self) -> None:
        """The provider has taken what was heard for an item."""
        if self.model is not None:
            self._awaited.append(self._conversation.heard_us)

    def failed(self) -> None:
        if self._awaited:
            self._billed_us = max(self._billed_us, self._awaited.popleft())

    async def completed(self, event: ServerEvent) -> None:
        """An item is transcribed: settle it as it was told, else by the length of what was heard."""
        until_us = self._awaited.popleft() if self._awaited else self._conversation.heard_us
        await self._settle(transcription_usage(event), "completed", until_us)

    async def cut_off(self, ending: Ending) -> None:
        """The session is over, and the provider was at work on something that it will not tell of."""
        if self._awaited:
            until_us = self._awaited[-1]
            self._awaited.clear()
            await self._settle(None, ending, until_us)

    def release(self) -> None:
        if self._ahead is not None:
            self._calls.release(self._ahead)
            self._ahead = None

    async def _settle(self, usage: Usage | None, ending: Ending, until_us: int) -> None:
        call, self._ahead = self._ahead, None
        if call is None:
            call = await self._unheld()
        self._calls.begun(call)
        estimated, heard_us = usage is None, max(0, until_us - self._billed_us)
        if usage is None:
            tokens = heard_us * INPUT_TOKENS_PER_S // SECOND_US
            usage = Usage(input_tokens=tokens, input_audio_tokens=tokens, input_us=heard_us)
        # What was told in tokens has no length: then all that was heard up to its item is taken to be done with.
        self._billed_us += min(heard_us, heard_us if usage.input_us is None else usage.input_us)
        reading = Reading(usage=usage, model=self.model or call.facts.model)
        await self._calls.settle(call, Metered(usage, estimated, reading), ending)

    async def _unheld(self) -> Call:
        facts = self._facts(0)
        try:
            return await self._calls.hold(facts, 0)
        except (ObolError, LedgerAway):
            return self._calls.not_held(facts)

    def _facts(self, length_us: int) -> RequestFacts:
        tokens = length_us * INPUT_TOKENS_PER_S // SECOND_US
        most = Usage(input_tokens=tokens, input_audio_tokens=ALL, input_us=length_us)
        return RequestFacts(model=self.model, stream=True, at_most=most)
