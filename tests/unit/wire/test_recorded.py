"""Every recorded exchange is read right, however its bytes are cut, and passes through byte for byte."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from recorded import Exchange, exchanges

from gateway.core.usage import ExtraUsage
from gateway.wire.contract import Meter, Reading

TOKEN_FIELDS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)

# These providers report more reasoning than output. A part is never larger than its whole, so reasoning is
# read as no more than the output; the recordings keep the number as it was sent.
REASONING_ABOVE_OUTPUT = frozenset(
    {
        "doubleword__chat_completions__sync__000",
        "openrouter__chat_completions__stream__003",
        "openrouter__chat_completions__sync__021",
        "together__chat_completions__sync__026",
        "vercel-gateway__chat_completions__stream__000",
        "vercel-gateway__chat_completions__stream__001",
        "vercel-gateway__chat_completions__stream__004",
        "vercel-gateway__chat_completions__stream__005",
        "vercel-gateway__chat_completions__stream__008",
        "vercel-gateway__chat_completions__sync__001",
        "vercel-gateway__chat_completions__sync__008",
        "vercel-gateway__chat_completions__sync__009",
    }
)

# The provider itself refused these for want of a model: so does the reader, before any call.
REFUSED_REQUESTS = frozenset(
    {"hyperbolic__chat_completions__sync__error__002", "together__completions__sync__error__000"}
)


def readable() -> list[Exchange]:
    return [one for one in exchanges() if one.id not in REFUSED_REQUESTS]


def pump(meter: Meter, pieces: Iterable[bytes]) -> bytes:
    sent = b"".join(meter.feed(piece) for piece in pieces)
    return sent + meter.finish()


def random_pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 30)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def tokens(reading: Reading) -> dict[str, int | None]:
    return {name: getattr(reading.usage, name, None) for name in TOKEN_FIELDS}


def expected_tokens(exchange: Exchange) -> dict[str, int | None]:
    expected = {name: exchange.expected[name] for name in TOKEN_FIELDS}
    if exchange.id in REASONING_ABOVE_OUTPUT:
        assert expected["reasoning_tokens"] > expected["output_tokens"], "the exception is not needed"
        expected["reasoning_tokens"] = expected["output_tokens"]
    return expected


def test_usage_is_exactly_what_was_recorded() -> None:
    wrong = {}
    counts: Counter[str] = Counter()
    for exchange in readable():
        meter = exchange.meter()
        assert meter.feed(exchange.response) is exchange.response
        assert meter.finish() == b""
        reading = meter.reading()
        found = dict.fromkeys(TOKEN_FIELDS) if reading.estimated else tokens(reading)
        if found != expected_tokens(exchange):
            wrong[exchange.id] = (found, expected_tokens(exchange))
        counts[exchange.format] += 1
    assert not wrong
    providers = {exchange.provider for exchange in readable()}
    print(f"\n{counts.total()} exchanges of {len(providers)} providers in {len(counts)} formats: {dict(counts)}")
    print(f"refused as the provider did: {sorted(REFUSED_REQUESTS)}")
    assert counts.total() == len(exchanges()) - len(REFUSED_REQUESTS) >= 1_010


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


# What the recordings call it, where it is in Usage, and how it is converted.
EXTRA_FIGURES: dict[str, tuple[str, Callable[[Any], int]]] = {
    "cache_write_1h": ("cache_write_1h_tokens", int),
    "web_search_requests": ("web_searches", int),
    "audio_input_tokens": ("input_audio_tokens", int),
    "image_input_tokens": ("input_image_tokens", int),
    "audio_seconds": ("input_us", _microseconds),
    "last_word_end_seconds": ("input_us", _microseconds),
    "characters": ("input_characters", int),
    "images": ("images", int),
    "search_units": ("search_units", int),
}


def test_extra_figures_are_what_was_recorded() -> None:
    checked: Counter[str] = Counter()
    for exchange in readable():
        meter = exchange.meter()
        pump(meter, [exchange.response])
        usage = meter.reading().usage
        for name in EXTRA_FIGURES.keys() & exchange.extra.keys():
            field, convert = EXTRA_FIGURES[name]
            if exchange.extra[name] is not None and exchange.request_told(field):
                assert usage is not None and getattr(usage, field) == convert(exchange.extra[name]), exchange.id
                checked[name] += 1
    print(f"\nchecked: {dict(checked)}")
    assert set(checked) == set(EXTRA_FIGURES)


def test_extra_iterations_are_billed_apart() -> None:
    found = 0
    for exchange in readable():
        if "extra_iterations" not in exchange.extra:
            continue
        meter = exchange.meter()
        pump(meter, [exchange.response])
        usage = meter.reading().usage
        expected = tuple(
            ExtraUsage(
                kind=one["type"],
                model=one["model"],
                input_tokens=one["input_tokens"] + one["cache_read_input_tokens"] + one["cache_creation_input_tokens"],
                cached_input_tokens=one["cache_read_input_tokens"],
                cache_write_tokens=one["cache_creation_input_tokens"],
                output_tokens=one["output_tokens"],
            )
            for one in exchange.extra["extra_iterations"]
        )
        assert usage is not None and usage.extra == expected, exchange.id
        found += 1
    assert found == 3


def test_errors_after_200_are_told() -> None:
    found = 0
    for exchange in readable():
        if "stream_error" in exchange.extra:
            meter = exchange.meter()
            pump(meter, [exchange.response])
            assert meter.reading().failed == exchange.extra["stream_error"], exchange.id
            found += 1
    assert found == 5


def test_model_is_the_one_that_answered() -> None:
    wrong = {}
    for exchange in readable():
        meter = exchange.meter()
        pump(meter, [exchange.response])
        model = meter.reading().model or exchange.facts().model
        if exchange.expected["model"] and model != exchange.expected["model"]:
            wrong[exchange.id] = (model, exchange.expected["model"])
    assert not wrong


def test_random_cuts_change_nothing() -> None:
    chance = random.Random(20261123)
    for exchange in readable():
        whole, cut = exchange.meter(), exchange.meter()
        pump(whole, [exchange.response])
        assert pump(cut, random_pieces(exchange.response, chance)) == exchange.response, exchange.id
        assert cut.reading() == whole.reading(), exchange.id
        assert cut.text() == whole.text(), exchange.id


def test_single_bytes_change_nothing() -> None:
    chance = random.Random(7)
    small = [one for one in readable() if 0 < len(one.response) < 6_000]
    sample = chance.sample(small, 60) + [one for one in small if one.stream][:20]
    for exchange in sample:
        whole, cut = exchange.meter(), exchange.meter(hide_usage=False)
        pump(whole, [exchange.response])
        pieces = [exchange.response[at : at + 1] for at in range(len(exchange.response))]
        assert pump(cut, pieces) == exchange.response, exchange.id
        assert cut.reading() == whole.reading(), exchange.id


def _without_usage_only_chunks(exchange: Exchange) -> tuple[bytes, int]:
    """What a client that did not ask should see, found the slow way: by parsing every event."""
    kept, dropped = [], 0
    blank_line = b"\r\n\r\n" if b"\r\n\r\n" in exchange.response else b"\n\n"
    for event in exchange.response.split(blank_line):
        data = event.strip().removeprefix(b"data:")
        chunk = json.loads(data) if data.lstrip().startswith(b"{") else {}
        if chunk.get("choices") == [] and chunk.get("usage") and not chunk.keys() & {"error", "moderation"}:
            dropped += 1
        else:
            kept.append(event)
    return blank_line.join(kept), dropped


def test_hidden_usage_chunks_and_nothing_else_are_withheld() -> None:
    chance = random.Random(42)
    hidden = 0
    for exchange in readable():
        if exchange.format not in ("openai_chat", "openai_completions") or not exchange.stream:
            continue
        shown = exchange.meter(hide_usage=False)
        pump(shown, [exchange.response])
        visible, dropped = _without_usage_only_chunks(exchange)
        for pieces in ([exchange.response], random_pieces(exchange.response, chance)):
            meter = exchange.meter(hide_usage=True)
            assert pump(meter, pieces) == visible, exchange.id
            assert meter.reading() == shown.reading(), exchange.id
        hidden += dropped
    print(f"\n{hidden} usage-only chunks withheld")
    assert hidden > 50


def test_text_is_gathered_where_no_usage_came() -> None:
    gathered = 0
    for exchange in readable():
        meter = exchange.meter()
        pump(meter, [exchange.response])
        reading = meter.reading()
        if exchange.format in ("openai_chat", "openai_completions") and exchange.stream and reading.usage is None:
            gathered += bool(meter.text())
            assert meter.text() or reading.failed, exchange.id
            assert reading.failed is None or reading.failed not in meter.text(), exchange.id
    assert gathered >= 15
