"""Recorded exchanges are served byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.local.fake.encodings import decoded
from gateway.local.fake.replay import Exchange, Recordings
from gateway.testing import FakeProvider

RECORDINGS = Path(__file__).parents[5] / "shared" / "recordings" / "http"


def exchange(name: str, body: str = "one", **fields: Any) -> Exchange:
    values = {
        "id": name,
        "host": "api.openai.com",
        "method": "POST",
        "path": "/v1/x?a=1",
        "request_body": "ask",
        "status": 200,
        "response_headers": {"Content-Type": "text/plain", "content-length": "99", "X-Kept": "1"},
        "response_body": body,
        **fields,
    }
    return Exchange(**values)


def write(directory: Path, *exchanges: Exchange) -> Path:
    for item in exchanges:
        (directory / f"{item.id}.json").write_bytes(orjson.dumps({f: getattr(item, f) for f in item.__struct_fields__}))
    return directory


async def replayed(http, provider, path: str = "/v1/x?a=1", body: bytes = b"ask", **headers: str):
    async with http.post(provider.url + path, data=body, headers=headers) as response:
        pieces = [piece async for piece, ended in response.content.iter_chunks() if piece]
        return response, b"".join(pieces)


async def test_exchanges_are_matched_by_host_and_served_in_order(http, tmp_path):
    other = exchange("c", "other host", host="api.x.ai")
    write(tmp_path, exchange("a", "first"), exchange("b", "second"), other, exchange("d", "quoted", path="/v1/y?b=%3A"))
    async with FakeProvider(replay=tmp_path) as provider:
        bodies = [(await replayed(http, provider, Host="api.openai.com"))[1] for _ in range(3)]
        assert bodies == [b"first", b"second", b"first"]
        assert (await replayed(http, provider, Host="api.x.ai"))[1] == b"other host"
        anywhere = [(await replayed(http, provider))[1] for _ in range(3)]
        assert anywhere == [b"first", b"second", b"other host"]
        assert (await replayed(http, provider, "/v1/y?b=:"))[1] == b"quoted"
        named = {"x-fake-exchange": "b"}
        assert (await replayed(http, provider, "/elsewhere", b"changed", **named))[1] == b"second"


async def test_an_unknown_request_is_told_what_was_looked_for(http, tmp_path):
    async with FakeProvider(replay=write(tmp_path, exchange("a"))) as provider:
        response, body = await replayed(http, provider, "/v1/y", b"other")
        message = json.loads(body)["error"]["message"]
        assert response.status == 404
        assert "/v1/y" in message
        assert hashlib.sha256(b"other").hexdigest() in message
        response, body = await replayed(http, provider, **{"x-fake-exchange": "zzz"})
        assert response.status == 404
        assert "zzz" in json.loads(body)["error"]["message"]


async def test_headers_are_recomputed(http, tmp_path):
    headers = {"content-type": "text/plain", "Content-Encoding": "br", "transfer-encoding": "chunked", "X-Kept": "1"}
    write(tmp_path, exchange("a", "plain", response_headers=headers, body_is_decoded=True))
    async with FakeProvider(replay=tmp_path) as provider:
        response, body = await replayed(http, provider)
    assert body == b"plain"
    assert response.headers["X-Kept"] == "1"
    assert response.headers["Content-Length"] == "5"
    assert "Content-Encoding" not in response.headers


async def test_a_body_is_split_and_encoded_on_request(http, tmp_path):
    text = "data: één\n\n" * 20
    write(tmp_path, exchange("a", text, stream=True, chunk_lengths=[13, 26]))
    raw = text.encode()
    async with FakeProvider(replay=tmp_path) as provider:
        for rule in ("every", "7", "random:3"):
            _, body = await replayed(http, provider, **{"x-fake-split": rule})
            assert body == raw
        for encoding, bits in (("gzip", 31), ("deflate", 15)):
            response, body = await replayed(http, provider, **{"x-fake-encode": encoding, "x-fake-split": "3"})
            assert response.headers["Content-Encoding"] == encoding
            assert zlib.decompress(body, bits) == raw
        for encoding in ("br", "zstd"):
            response, body = await replayed(http, provider, **{"x-fake-encode": encoding})
            assert response.headers["Content-Encoding"] == encoding
            assert body != raw and decoded(body, encoding) == raw
        for steer in ({"x-fake-split": "0"}, {"x-fake-encode": "compress"}):
            response, body = await replayed(http, provider, **steer)
            assert response.status == 400
            assert next(iter(steer)) in json.loads(body)["error"]["message"]


async def test_writes_have_the_sizes_asked_for(tmp_path):
    write(tmp_path, exchange("a", "abcdefghij", stream=True, chunk_lengths=[2, 5, 3]))
    async with FakeProvider(replay=tmp_path) as provider:
        assert await framing(provider) == [2, 5, 3]
        assert await framing(provider, "x-fake-split: 4") == [4, 4, 2]
        assert await framing(provider, "x-fake-split: every") == [1] * 10
        first = await framing(provider, "x-fake-split: random:1")
        assert sum(first) == 10
        assert first == await framing(provider, "x-fake-split: random:1")


async def framing(provider: FakeProvider, *headers: str) -> list[int]:
    """The sizes of the HTTP chunks, read off the socket."""
    host, port = provider.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = ["POST /v1/x?a=1 HTTP/1.1", "host: h", "content-length: 3", "connection: close", *headers]
    writer.write("\r\n".join([*lines, "", "ask"]).encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b"chunked" in head
    sizes = []
    while body:
        size, _, body = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        body = body[sizes[-1] + 2 :]
    assert sizes.pop() == 0
    return sizes


def test_a_directory_without_recordings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no recorded exchange"):
        Recordings.load(tmp_path)
    (tmp_path / "bad.json").write_text('{"id": 1}')
    with pytest.raises(ValueError, match=r"bad\.json"):
        Recordings.load(tmp_path)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not there")
async def test_every_recording_is_served_as_it_was_recorded(http):
    async with FakeProvider(replay=RECORDINGS) as provider:
        for path in sorted(RECORDINGS.glob("*.json")):
            recorded = orjson.loads(path.read_bytes())
            wanted = Exchange(**{f: recorded[f] for f in Exchange.__struct_fields__ if f in recorded})
            headers = {"x-fake-exchange": wanted.id, "Host": wanted.host}
            async with http.post(provider.url + "/", headers=headers) as response:
                assert await response.read() == wanted.body(), wanted.id
                assert response.status == wanted.status
                assert response.headers.get("Content-Encoding", "") == wanted.content_encoding()


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the shared recordings are not there")
async def test_every_recorded_request_finds_an_exchange_of_its_own(http):
    recordings = Recordings.load(RECORDINGS)
    for path in sorted(RECORDINGS.glob("*.json")):
        recorded = orjson.loads(path.read_bytes())
        wanted = Exchange(**{f: recorded[f] for f in Exchange.__struct_fields__ if f in recorded})
        digest = hashlib.sha256(wanted.request_bytes()).hexdigest()
        found = recordings.find("", wanted.host, wanted.method, wanted.path, digest)
        assert (found.host, found.path, found.request_body) == (wanted.host, wanted.path, wanted.request_body)
