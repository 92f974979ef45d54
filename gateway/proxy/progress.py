"""How far a live stream has come: what its hold says the reaper is to debit, should this gateway die.

As near to the truth as is cheap: what the provider has told so far; else the prompt, counted once, and for the output
the first text, counted once, and from then on its ratio of tokens to bytes. Reasoning that does not show is left out:
for our own failure nobody pays on a guess.
"""

from __future__ import annotations

import msgspec

from gateway.core.usage import Usage
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price
from gateway.proxy.call import Call
from gateway.proxy.charging import priced_model, pricing_of, within_hold
from gateway.proxy.parts import Parts
from gateway.wire.contract import Reading
from gateway.wire.meters import KEPT_TEXT_BYTES

SAMPLE_TOKENS = 32
"""A ratio learned from fewer is learned again."""
SAMPLE_BYTES = 8 * 1024
"""Some 40 events, read in 0.3 ms, once a stream."""


class Progress:
    """What was learned of one stream."""

    __slots__ = ("prompt_tokens", "sample_bytes", "sample_tokens")

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.sample_tokens = self.sample_bytes = 0

    @property
    def learned(self) -> bool:
        return self.sample_tokens >= SAMPLE_TOKENS

    def output_tokens(self, seen_bytes: int) -> int:
        """Of so many bytes of the stream."""
        return self.sample_tokens * seen_bytes // self.sample_bytes if self.sample_bytes else 0


async def learn(parts: Parts, call: Call) -> None:
    """Count the prompt and the first text. Takes some 0.1 ms, for a large prompt in a thread."""
    assert call.watch is not None
    progress = call.progress
    try:
        if progress is None:
            progress = Progress(await call.watch.count_prompt(call.body, parts.counter))
        progress.sample_tokens, progress.sample_bytes = await call.watch.sample(parts.counter, SAMPLE_BYTES)
        if not progress.learned:
            most_bytes = KEPT_TEXT_BYTES
            progress.sample_tokens, progress.sample_bytes = await call.watch.sample(parts.counter, most_bytes)
        call.progress = progress
    finally:
        call.learning = False


def so_far(parts: Parts, call: Call) -> tuple[Price, bytes]:
    """What the call has cost until now, and its row."""
    assert call.watch is not None
    assert call.progress is not None
    reading = call.watch.reading_so_far()
    usage = within_hold(parts, call, _usage(call.progress, reading, call.watch.seen_bytes), reading)
    model = priced_model(parts, call, reading)
    principal = call.principal
    priced = pricing_of(parts, call).price(
        call.provider_name, model, usage, reading.service_tier, principal.meter, charged=principal.charged
    )
    return priced.price, encode(call.row_so_far(usage, priced, model, reading))


def _usage(progress: Progress, reading: Reading, seen_bytes: int) -> Usage:
    told = reading.usage or Usage()
    return msgspec.structs.replace(
        told,
        input_tokens=progress.prompt_tokens if told.input_tokens is None else told.input_tokens,
        output_tokens=progress.output_tokens(seen_bytes) if told.output_tokens is None else told.output_tokens,
    )
