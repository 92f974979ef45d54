from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httptools
import pytest
from load_servers import provider, serving

from loadtests.provider import PROMPT_TOKENS


class Answers:
    """Collects the responses that a strict HTTP parser reads."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.bodies.append(self._body)
        self.statuses.append(self.parser.get_status_code())
        self._body = b""


async def exchange(raw: bytes, count: int = 1) -> Answers:
    """Send `raw` in one piece to the provider, read `count` answers."""
    answers = Answers()
    async with serving(provider()) as target, asyncio.timeout(5):
        parts = urlsplit(target)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(raw)
        while len(answers.bodies) < count:
            data = await reader.read(65536)
            assert data, "closed early"
            answers.parser.feed_data(data)
        writer.close()
    return answers


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def events(body: bytes) -> list[Any]:
    """The events of an SSE body; each must be one `data:` line, the last one the end marker."""
    pieces = body.split(b"\n\n")
    assert pieces[-1] == b"" and pieces[-2] == b"data: [DONE]"
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces[:-2]]


async def test_a_completion_is_json_with_usage_that_adds_up() -> None:
    answers = await exchange(post(b'{"model":"m","messages":[]}'))
    usage = json.loads(answers.bodies[0])["usage"]
    assert answers.statuses == [200]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == PROMPT_TOKENS


@pytest.mark.parametrize("delay_ms", [0, 1])
@pytest.mark.parametrize("chunks", [1, 63, 64, 200])
async def test_a_stream_has_the_chunks_that_the_prompt_asks_for(chunks: int, delay_ms: int) -> None:
    directive = f"[[fake chunks={chunks} chunk_delay_ms={delay_ms}]]"
    body = json.dumps({"stream": True, "stream_options": {"include_usage": True}, "messages": [directive]})
    found = events((await exchange(post(body.encode()))).bodies[0])
    content = [event for event in found if event["choices"] and event["choices"][0]["delta"].get("content")]
    assert len(content) == chunks
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == chunks


async def test_a_stream_that_did_not_ask_for_usage_has_none() -> None:
    found = events((await exchange(post(b'{"stream":true}'))).bodies[0])
    assert not any(event.get("usage") for event in found)
    assert len(found) == 3 + 2


async def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    answers = await exchange(post(b'{"stream":true}') + post(b"{}") + post(b'{"stream": true}'), count=3)
    assert [body.startswith(b"data: ") for body in answers.bodies] == [True, False, True]


async def test_a_chunked_request_body_is_understood() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = await exchange(head + b'5\r\n{"str\r\na\r\neam":true}\r\n0\r\n\r\n')
    assert len(events(answers.bodies[0])) == 5


async def test_a_get_answers_and_closing_is_honoured() -> None:
    answers = await exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert json.loads(answers.bodies[0]) == {"status": "ok"}
