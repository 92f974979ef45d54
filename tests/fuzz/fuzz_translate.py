"""Translation under fuzz: requests are translated or refused by name, answers translated the same whatever the cuts."""

from __future__ import annotations

import json
from random import Random
from typing import get_args

from fuzz_formats import make_answer, make_request
from fuzzing import pieces

from gateway.errors import ObolError
from gateway.wire.translate.framing import Untranslatable, Writing
from gateway.wire.translate.model import Dialect
from gateway.wire.translate.translation import Translator, path_of, read_request, translator, write_request
from gateway.wire.translate.values import To

__all__ = ["make_answer", "make_request"]
LIMIT_BYTES = 1024 * 1024
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
LIKELY: tuple[tuple[bytes, Dialect], ...] = (
    *((b'"choices"', "openai"), (b'"messages"', "openai"), (b'"message_', "anthropic"), (b'"max_tokens"', "anthropic")),
    *((b"usageMetadata", "google"), (b'"candidates"', "google"), (b'"contents"', "google")),
)


def _pair(data: bytes, random: Random) -> tuple[Dialect, Dialect]:
    """Mostly a dialect that the bytes are of, and another one."""
    likely = [dialect for mark, dialect in LIKELY if mark in data] if random.random() < 0.8 else []
    names = likely or list(DIALECTS)
    first = names[int(random.random() * len(names))]
    others = [dialect for dialect in DIALECTS if dialect != first]
    return first, others[int(random.random() * len(others))]


def check_request(data: bytes, random: Random) -> str:
    client, provider = _pair(data, random)
    try:
        ask = read_request(data, client, model="m" if client == "google" else None, stream=random.random() < 0.5)
        body = write_request(ask, provider, To(provider="openai", asks_usage=True))
    except ObolError as error:
        assert error.code in ("invalid_request", "forward_model_invalid", "forward_translation_not_supported")
        assert error.param
        assert len(error.message) < 4_000
        return error.code
    written = json.loads(body)
    assert provider == "google" or written["model"] == ask.model
    assert path_of(ask, provider, "/v1/x").startswith("/v1/")
    again = read_request(body, provider, model=ask.model, stream=ask.stream)  # what is written can be read
    assert len(again.messages) <= len(ask.messages) + 1
    return "translated"


def check_answer(data: bytes, random: Random) -> str:
    provider, client = _pair(data, random)
    stream, array = random.random() < 0.6, random.random() < 0.3
    status = 429 if random.random() < 0.1 else 200
    whole, cut = (_translator(provider, client, status, stream, array) for _ in range(2))
    said, other = _all_of(whole, [data]), _all_of(cut, pieces(data, random))
    assert said == other, f"{provider} to {client}: {said!r} {other!r}"
    if said is None:
        return "untranslatable"
    if not stream or status >= 400:
        assert isinstance(json.loads(said), dict)
    return "translated" if status < 400 else "error"


def _translator(provider: Dialect, client: Dialect, status: int, stream: bool, array: bool) -> Translator:
    return translator(
        client,
        provider,
        Writing(request_id="req_1", model="m", include_usage=True, array=array),
        provider_name="openai",
        status=status,
        content_type="text/event-stream" if stream else "application/json",
        streams=stream,
        limit_bytes=LIMIT_BYTES,
    )


def _all_of(one: Translator, given: list[bytes]) -> bytes | None:
    try:
        return b"".join([one.feed(piece) for piece in given]) + one.finish()
    except Untranslatable:
        return None
