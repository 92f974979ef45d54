"""Each fault is what it is called."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import aiohttp
import pytest
from fake_calls import CHAT, GEMINI, chat, contents, events, post

from gateway.testing import steering_header

STREAMS = {
    "chat": (CHAT, chat("Hello", stream=True)),
    "completions": ("/v1/completions", {"model": "m", "prompt": "Hello", "stream": True}),
    "responses": ("/v1/responses", {"model": "m", "input": "Hello", "stream": True}),
    "anthropic": ("/v1/messages", chat("Hello", stream=True, max_tokens=1_000)),
    "gemini": (f"{GEMINI}:streamGenerateContent?alt=sse", contents("Hello")),
}
END_MARKERS = (b"[DONE]", b"response.completed", b"message_stop", b"finishReason")


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_is_cut_says_so_to_its_reader(http, provider, name):
    path, body = STREAMS[name]
    with pytest.raises(aiohttp.ClientPayloadError):
        await post(http, provider, path, body, **steering_header(fault="reset_mid_stream"))
    with pytest.raises(aiohttp.ClientOSError):
        await post(http, provider, path, body, **steering_header(fault="reset_before_first_byte"))
    assert [record.outcome for record in provider.requests] == ["reset", "reset"]
    assert provider.requests[0].response_bytes > 0
    assert provider.requests[1].response_bytes == 0


@pytest.mark.parametrize("name", STREAMS)
async def test_a_truncated_stream_has_its_text_and_no_end(http, provider, name):
    path, body = STREAMS[name]
    _, whole = await post(http, provider, path, body)
    _, cut = await post(http, provider, path, body, **steering_header(fault="truncated"))
    assert whole.startswith(cut)
    assert any(marker in whole for marker in END_MARKERS)
    assert not any(marker in cut for marker in END_MARKERS)


@pytest.mark.parametrize("name", STREAMS)
async def test_an_error_event_ends_a_stream_of_status_200(http, provider, name):
    path, body = STREAMS[name]
    status, answer = await post(http, provider, path, body, **steering_header(fault="error_event"))
    assert status == 200
    last = events(answer)[-1]
    assert last["response"]["status"] == "failed" if name == "responses" else "message" in last["error"]
    assert not any(marker in answer for marker in END_MARKERS)


USAGES = (b'"usage":{', b'"usageMetadata":{')


@pytest.mark.parametrize("name", STREAMS)
async def test_the_usage_faults_change_how_often_usage_is_sent(http, provider, name):
    path, body = STREAMS[name]
    counts = {}
    for fault in ("", "no_usage", "usage_twice", "usage_cumulative"):
        _, answer = await post(http, provider, path, body, **steering_header(fault=fault, chunks=10))
        counts[fault] = sum(answer.count(usage) for usage in USAGES)
    assert counts["no_usage"] == 0
    assert counts["usage_twice"] > counts[""]
    assert counts["usage_cumulative"] >= 10


async def test_cumulative_usage_grows_to_the_total(http, provider):
    headers = steering_header(fault="usage_cumulative", chunks=4, completion_tokens=10)
    _, body = await post(http, provider, CHAT, chat(stream=True), **headers)
    seen = [event["usage"]["completion_tokens"] for event in events(body)]
    assert seen == [0, 2, 5, 7, 10, 10]


async def test_a_plain_body_is_cut_too(http, provider):
    for fault in ("reset_mid_stream", "truncated"):
        with pytest.raises(aiohttp.ClientPayloadError):
            await post(http, provider, CHAT, chat(), **steering_header(fault=fault))
    status, body = await post(http, provider, CHAT, chat(), **steering_header(fault="error_event"))
    assert (status, json.loads(body)["error"]["type"]) == (200, "server_error")
    _, body = await post(http, provider, CHAT, chat(), **steering_header(fault="no_usage"))
    assert "usage" not in json.loads(body)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stall_lasts_until_the_client_goes(http, provider, stream):
    headers = steering_header(fault="stall")
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(0.2),
            http.post(provider.url + CHAT, json=chat(stream=stream), headers=headers) as response,
        ):
            await response.read()
    await asyncio.sleep(0.05)
    assert provider.requests[0].outcome == "disconnected"
    assert provider.requests[0].response_bytes > 0


async def test_a_slow_first_byte_and_a_huge_line(http, provider):
    started = asyncio.get_running_loop().time()
    await post(http, provider, CHAT, chat(), **steering_header(fault="slow_first_byte:80"))
    assert asyncio.get_running_loop().time() - started >= 0.08
    _, body = await post(http, provider, CHAT, chat(stream=True), **steering_header(fault="huge_line:3000000"))
    longest = max(body.splitlines(), key=len)
    assert 3_000_000 <= len(longest) < 3_001_000
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("steer", "accepted", "zipped"),
    [
        ({}, "gzip", False),
        ({"fault": "gzip"}, "gzip, br", True),
        ({"encoding": "gzip"}, "br, *;q=0.5", True),
        ({"encoding": "gzip"}, "gzip;q=0", False),
        ({"fault": "gzip"}, "identity", False),
        ({"fault": "gzip_always"}, "identity", True),
    ],
)
async def test_a_body_is_compressed_only_where_asked_and_allowed(http, provider, steer, accepted, zipped):
    for stream in (True, False):
        _, plain = await post(http, provider, CHAT, chat(stream=stream), **{"Accept-Encoding": "identity"})
        headers = {**steering_header(**steer), "Accept-Encoding": accepted}
        async with http.post(provider.url + CHAT, json=chat(stream=stream), headers=headers) as response:
            body = await response.read()
        assert response.headers.get("Content-Encoding") == ("gzip" if zipped else None)
        assert (gzip.decompress(body) if zipped else body) == plain


async def test_each_chunk_of_a_compressed_stream_can_be_read_at_once(http, provider):
    headers = steering_header(fault="gzip_always", chunks=3, chunk_delay_ms=30)
    inflater = zlib.decompressobj(wbits=31)
    async with http.post(provider.url + CHAT, json=chat(stream=True), headers=headers) as response:
        pieces = [inflater.decompress(piece) async for piece, _ in response.content.iter_chunks()]
    assert len([piece for piece in pieces if b'"content":' in piece]) >= 3
