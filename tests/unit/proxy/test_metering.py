"""The watch: what it reads through a compression, and what it counts where the provider says nothing."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Iterator

import brotli
import pytest

from gateway.core.usage import Usage
from gateway.counting import Counter
from gateway.proxy.decoding import AT_ONCE_BYTES
from gateway.proxy.metering import Metered, Watch
from gateway.wire.formats import FORMATS

PROMPT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello world"}]}).encode()
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    counter = Counter()
    counter.count_sync("loaded", "gpt-4o")
    yield counter
    counter.close()


async def measured(
    counter: Counter,
    pieces: list[bytes],
    *,
    name: str = "openai_chat",
    request: bytes = PROMPT,
    encoding: str = "",
    content_type: str = "application/json",
) -> Metered:
    facts = FORMATS[name].read_request(request, "/v1beta/models/gemini-2.5-flash:generateContent", "")
    watch = Watch(
        FORMATS[name],
        facts,
        provider="openai",
        content_type=content_type,
        encoding=encoding,
        hide=False,
        limit_bytes=64 << 20,
    )
    for piece in pieces:
        assert watch.feed(piece) is piece, "the client's bytes stay as they are"
    watch.finish()
    return await watch.measure(request, counter, failed=False)


def answer(padding: int = 0) -> bytes:
    message = {"role": "assistant", "content": "hi"}
    return b" " * padding + json.dumps({"model": "gpt-4o", "choices": [{"message": message}], "usage": USAGE}).encode()


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("br", brotli.compress)])
async def test_what_is_put_off_is_read_in_the_end(counter: Counter, encoding: str, compress) -> None:
    """Seven megabytes of keep-alive white space before the answer come in one small piece."""
    compressed = compress(answer(28 * AT_ONCE_BYTES))
    assert len(compressed) < 10_000
    metered = await measured(counter, [compressed], encoding=encoding)
    assert (metered.usage, metered.estimated) == (Usage(input_tokens=9, output_tokens=3), False)


async def test_an_unreadable_encoding_is_estimated_by_its_size(counter: Counter) -> None:
    metered = await measured(counter, [b"x" * 401], encoding="compress")
    assert (metered.usage, metered.estimated) == (Usage(input_tokens=2, output_tokens=101), True)


async def test_a_compressed_answer_gone_bad_is_estimated(counter: Counter) -> None:
    metered = await measured(counter, [gzip.compress(answer())[:20], b"\xff" * 400], encoding="gzip")
    assert metered.estimated and (metered.usage.output_tokens or 0) >= 100


def picture(width: int, height: int) -> str:
    header = b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", width, height)
    return base64.b64encode(header + bytes(300_000)).decode()


async def test_images_of_the_prompt_are_counted_by_their_rule(counter: Counter) -> None:
    parts = [
        {"type": "text", "text": "hello world"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture(1_024, 1_024)}},
    ]
    request = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": parts}]}).encode()
    metered = await measured(counter, [b'{"choices":[{"message":{"content":"hello world"}}]}'], request=request)
    assert metered.estimated
    assert metered.usage == Usage(input_tokens=2 + 765, input_image_tokens=765, output_tokens=2)


async def test_only_what_is_missing_is_counted(counter: Counter) -> None:
    """An explicit zero stays zero; a missing field falls back; field by field."""
    half = b'{"choices":[{"message":{"content":"hello world"}}],"usage":{"prompt_tokens":0}}'
    metered = await measured(counter, [half])
    assert (metered.usage, metered.estimated) == (Usage(input_tokens=0, output_tokens=2), True)
    other = b'{"choices":[{"message":{"content":"hello world"}}],"usage":{"completion_tokens":0}}'
    metered = await measured(counter, [other])
    assert (metered.usage, metered.estimated) == (Usage(input_tokens=2, output_tokens=0), True)


@pytest.mark.parametrize(
    "text",
    ['"' + " " * 1_000_000 + '"', '"\\ud800 broken \\udfff"', '"' + "a" * 3_000_000 + '"'],
    ids=["spaces", "surrogates", "long"],
)
async def test_hostile_answers_do_no_harm(counter: Counter, text: str) -> None:
    event = b'data: {"choices":[{"delta":{"content":' + text.encode() + b"}}]}\n\n"
    request = PROMPT[:-1] + b',"stream":true}'
    metered = await measured(counter, [event], request=request, content_type="text/event-stream")
    assert metered.estimated and metered.usage.input_tokens == 2
    broken = b'data: {"choices":[{"delta":{"content":"\xff\xfe ok"}}]}\n\n'
    metered = await measured(counter, [broken], request=request, content_type="text/event-stream")
    assert metered.estimated


async def test_what_a_format_derived_is_flagged(counter: Counter) -> None:
    request = b'{"model":"gpt-4o-mini-tts","input":"hello"}'
    sound = [bytes(48_000)]
    metered = await measured(counter, sound, name="audio_speech", request=request, content_type="audio/pcm")
    assert metered.estimated and metered.usage.output_audio_tokens == 20


async def test_an_answer_of_which_nothing_is_read_is_not_decoded(counter: Counter) -> None:
    """Bytes are counted as they came."""
    compressed = gzip.compress(b"x" * 10_000)
    metered = await measured(counter, [compressed], name="http", request=b"", encoding="gzip")
    assert metered.usage == Usage(input_bytes=0, output_bytes=len(compressed))
