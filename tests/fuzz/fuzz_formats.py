"""The wire formats under fuzz: requests are read or refused by name, answers are read the same whatever the cuts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Mutator, pieces

from gateway.errors import ObolError
from gateway.wire import metadata
from gateway.wire.contract import Format, Meter, RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.inject import with_usage

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings" / "http"
RECORDED_MAX = 150
RECORDED_BYTES_MAX = 1_200
LIMIT_BYTES = 1024 * 1024
NAMES = sorted(FORMATS)
PATHS = ("/v1/x", "/v1beta/models/m:generateContent", "/openai/deployments/m/chat/completions", "/models/:", "/:x")
CONTENT_TYPES = ("text/event-stream", "application/json", "application/stream+json", "", "audio/mpeg")
FORM = 'multipart/form-data; boundary="b"'

REQUESTS = [
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":5,"n":2}',
    b'{"model":"m","input":"hi","stream":true,"stream_options":{"include_usage":false,"a":[1]},"service_tier":"flex"}',
    b'{"contents":[{"parts":[{"text":"hi"}]}],"generationConfig":{"maxOutputTokens":5,"candidateCount":2}}',
    b'{"model":"m","prompt":["a","b"],"suffix":"\\u00e9","best_of":3}',
    b'{"model":"m","system":[{"text":"s"}],"messages":[],"max_tokens":9,"thinking":{"budget_tokens":2}}',
    b'{"model":"m","query":"q","documents":["d",{"text":"e"}],"top_n":1}',
    b'{"model":"m","input":"speak","voice":"v","text":"hi","size":"1024x1024","quality":"hd"}',
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n'
    b'content-disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n',
]
ANSWERS = [
    b'data: {"model":"m","choices":[{"delta":{"content":"hi"}}],"usage":null}\n\ndata: [DONE]\n\n',
    b'{"id":"c","model":"m","choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":7,"completion_tokens":3}}',
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":7}}}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'data: {"type":"response.completed","response":{"model":"m","usage":{"input_tokens":7,"output_tokens":3}}}\n\n',
    b'[{"candidates":[{"content":{"parts":[{"text":"hi"}]}}]},\n{"usageMetadata":{"promptTokenCount":7}}]',
    b'{"event_type":"text-generation","text":"hi"}\n{"event_type":"stream-end","response":{"meta":{"billed_units":{}}}}\n',
    b'data: {"error":{"message":"overloaded"}}\n\n',
    b'{"text":"hi","duration":1.5,"usage":{"type":"duration","seconds":2},"data":[{"b64_json":"x"}],"words":[{"end":2}]}',
]
WORDS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"null",
        b"true",
        b"1e999",
        b"-1",
        b"0",
        b"1.5",
        b"NaN",
        b"9" * 30,
        b"\\",
    ),
    *(b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"\x00", b"[" * 1_100, b'{"a":' * 300, b'"\xed\xa0\x80"'),
    *(
        b"\n\n",
        b"\r\n\r\n",
        b"\r",
        b"data: ",
        b"event: error\n",
        b"data: [DONE]\n\n",
        b"\r\n--b\r\n",
        b"--b--",
        b'name="',
    ),
    *(
        f'"{name}":'.encode()
        for name in ("model", "usage", "error", "type", "choices", "stream", "stream_options", "n")
    ),
    *(
        b'"usage":null',
        b'"usage":{',
        b'"message_delta"',
        b'"usageMetadata":{',
        b'"stream_options":null',
        b'"is_finished":true',
    ),
]
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    7,
    -1,
    1.5,
    12.0,
    10**30,
    float("nan"),
    "",
    "x",
    "m",
    "\ud800",
    [],
    {},
    [{}],
    "stop",
)
OBJECT = re.compile(rb"\{[^\r\n]*\}")
LIKELY = (
    *((b'"choices"', "openai_chat"), (b'"messages"', "openai_chat"), (b'"prompt"', "openai_completions")),
    *((b'"response.', "openai_responses"), (b'"input"', "openai_responses"), (b'"input"', "openai_embeddings")),
    *(
        (b'"message_', "anthropic_messages"),
        (b'"content"', "anthropic_messages"),
        (b'"max_tokens"', "anthropic_messages"),
    ),
    *((b"usageMetadata", "gemini_stream"), (b'"candidates"', "gemini_generate"), (b'"contents"', "gemini_generate")),
    *((b"event_type", "cohere_v1_chat"), (b"billed_units", "cohere_v2_chat"), (b'"documents"', "rerank")),
    *((b'"b64_json"', "images"), (b"form-data", "audio_transcriptions"), (b'"words"', "elevenlabs_stt")),
)
PAIRS = [
    b'{"feature":"chat","user":"u-1"}',
    b"{}",
    b'{"a":1}',
    b'{"' + b"k" * 300 + b'":"v"}',
    b'{"a":"' + b"v" * 300 + b'"}',
]


def _recorded() -> tuple[list[bytes], list[bytes]]:
    """Small recorded requests and answers, where the recordings are there."""
    requests, answers = [], []
    for path in sorted(RECORDINGS.glob("*.json"))[::3]:
        one = json.loads(path.read_bytes())
        for text, found in ((one["request_body"], requests), (one["response_body"], answers)):
            if text and len(text) <= RECORDED_BYTES_MAX and len(found) < RECORDED_MAX:
                found.append(text.encode())
    return requests, answers


_requests, _answers = _recorded()
_mutated_request = Mutator(REQUESTS + _requests, WORDS)
_mutated_answer = Mutator(ANSWERS + _answers, WORDS)
make_metadata = Mutator(PAIRS, WORDS)


def make_request(random: Random) -> bytes:
    return _with_odd_members(REQUESTS + _requests, random) if random.random() < 0.5 else _mutated_request(random)


def make_answer(random: Random) -> bytes:
    return _with_odd_members(ANSWERS + _answers, random) if random.random() < 0.5 else _mutated_answer(random)


def _with_odd_members(seeds: list[bytes], random: Random) -> bytes:
    """A seed in which JSON stays JSON, but one member in each object is missing or not what it should be."""

    def odd(found: re.Match[bytes]) -> bytes:
        value = _json(found[0])
        return json.dumps(_changed(value, random)).encode() if isinstance(value, dict) else found[0]

    return OBJECT.sub(odd, seeds[int(random.random() * len(seeds))])


def _changed(value: Any, random: Random) -> Any:
    number = random.random
    if not isinstance(value, dict | list) or not value or number() < 0.1:
        return ODD[int(number() * len(ODD))]
    names = list(value) if isinstance(value, dict) else range(len(value))
    name = names[int(number() * len(names))]
    if number() < 0.1:
        del value[name]
    else:
        value[name] = _changed(value[name], random)
    return value


def _format(random: Random, data: bytes) -> Format:
    """Mostly one that speaks like this."""
    likely = [name for mark, name in LIKELY if mark in data] if random.random() < 0.7 else NAMES
    names = likely or NAMES
    return FORMATS[names[int(random.random() * len(names))]]


def check_request(data: bytes, random: Random) -> str:
    format_ = _format(random, data)
    path = PATHS[int(random.random() * len(PATHS))]
    content_type = FORM if data.startswith(b"--") and random.random() < 0.7 else "application/json"
    try:
        facts = format_.read_request(data, path, "", content_type)
    except ObolError as error:
        assert error.code in ("invalid_request", "forward_model_invalid"), error.code
        assert error.param
        assert len(error.message) < 1_000
        return error.code
    assert isinstance(format_.request_text(data), str)
    assert facts.choices >= 1
    assert facts.model is None or facts.model
    assert facts.max_output_tokens is None or facts.max_output_tokens >= 0
    asking = facts.stream and not facts.include_usage and format_.name in ("openai_chat", "openai_completions")
    upstream = format_.upstream_body(data, facts, inject_usage=True)
    assert (upstream == data) is not asking
    if asking:
        _check_injected(data, upstream)
    return "read, asks for usage" if asking else "read"


def _check_injected(before: bytes, after: bytes) -> None:
    """What another reader sees is what the client sent, and that usage is asked for."""
    sent, received = _json(before), _json(after)
    if not isinstance(sent, dict) or not isinstance(received, dict):
        assert sent == received, "the body cannot be read any more"
        return
    options = received.pop("stream_options")
    asked = sent.pop("stream_options", None)
    assert repr(received) == repr(sent)  # repr: NaN equals itself
    assert options["include_usage"] is True
    assert not isinstance(asked, dict) or {**asked, "include_usage": True}.keys() == options.keys()
    assert with_usage(after) == after or _json(with_usage(after)) == _json(after)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return type(error).__name__


def check_answer(data: bytes, random: Random) -> str:
    format_ = _format(random, data)
    content_type = CONTENT_TYPES[int(random.random() * len(CONTENT_TYPES))]
    stream = random.random() < 0.6
    whole, cut = (_meter(format_, content_type, stream) for _ in range(2))
    assert whole.feed(data) + whole.finish() == data
    assert b"".join(map(cut.feed, pieces(data, random))) + cut.finish() == data
    assert whole.seen_bytes == cut.seen_bytes == len(data)
    reading, other = whole.reading(), cut.reading()
    same = (reading.usage, reading.failed, reading.finished) == (other.usage, other.failed, other.finished)
    assert same, f"{format_.name} as {content_type!r}: {reading} {other}"
    assert reading.usage is None or reading.usage.total_tokens >= 0
    assert reading.model is None or reading.model
    if reading.usage is None:
        assert whole.text() == cut.text(), format_.name
    return "usage" if reading.usage else "failed" if reading.failed else "no usage"


def _meter(format_: Format, content_type: str, stream: bool) -> Meter:
    return format_.meter(
        RequestFacts(model="m", stream=stream),
        provider="openai",
        content_type=content_type,
        hide_usage=False,
        limit_bytes=LIMIT_BYTES,
    )


def check_metadata(data: bytes, random: Random) -> str:
    text = data.decode("utf-8", "surrogateescape")
    place = random.random()
    headers = [("X-Lava-Metadata", text)] if place < 0.5 else [("x-lava-metadata-" + text[:20], text[20:])]
    try:
        found = metadata.parse(headers, text if place > 0.8 else None)
    except ObolError as error:
        assert error.code == "metadata_invalid"
        assert len(error.message) < 1_000
        return error.code
    assert metadata.validate(found) == found
    assert len(found) <= metadata.MAX_PAIRS
    assert "\x00" not in "".join(found.values())
    "".join(found.values()).encode()
    return "read"


TARGETS = [
    ("requests", make_request, check_request),
    ("answers", make_answer, check_answer),
    ("metadata", make_metadata, check_metadata),
]
