"""Recorded exchanges, served as they were recorded.

An exchange is one JSON file: `id`, `host`, `method`, `path` (with its query), `request_body`, `status`,
`response_headers`, `response_body`, `body_is_decoded`, and optionally `chunk_lengths`; bodies are text or, where their
`..._encoding` says so, base64. Lengths and transfer encoding are computed anew; `content-encoding` is dropped where
the body was stored decoded. A missing content type (some recorders kept none) is supplied from the stream's format.

Request headers that steer the reply:

    x-fake-exchange: ID                     this exchange, whatever else the request says
    x-fake-split: N | every | random:SEED   write the body in pieces of N bytes, 1 byte, or 1 to 64 bytes
    x-fake-encode: gzip | deflate | br | zstd | identity    send the body so encoded
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import msgspec
from aiohttp import web

from gateway.local.fake import encodings
from gateway.local.fake.call import FakeError
from gateway.local.fake.records import Record

EXCHANGE_HEADER = "x-fake-exchange"
SPLIT_HEADER = "x-fake-split"
ENCODE_HEADER = "x-fake-encode"
RANDOM_PIECE_MAX_BYTES = 64

_RECOMPUTED = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive", "content-encoding"})
_STREAM_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded exchange, as its file has it."""

    id: str
    host: str
    method: str
    path: str
    request_body: str
    request_body_encoding: str | None = None
    status: int
    response_headers: dict[str, str]
    response_body: str
    response_body_encoding: str | None = None
    body_is_decoded: bool = False
    stream: bool = False
    stream_format: str | None = None
    chunk_lengths: list[int] | None = None

    def request_bytes(self) -> bytes:
        return _decoded(self.request_body, self.request_body_encoding)

    def body(self) -> bytes:
        return _decoded(self.response_body, self.response_body_encoding)

    def content_encoding(self) -> str:
        """The encoding the stored bytes really have; "" for none."""
        if self.body_is_decoded:
            return ""
        return next((v for k, v in self.response_headers.items() if k.lower() == "content-encoding"), "")

    def headers(self) -> dict[str, str]:
        """The recorded headers without those that are computed anew."""
        kept = {name: value for name, value in self.response_headers.items() if name.lower() not in _RECOMPUTED}
        if not any(name.lower() == "content-type" for name in kept):
            plain = "application/octet-stream" if self.response_body_encoding == "base64" else "application/json"
            kept["Content-Type"] = _STREAM_TYPES.get(self.stream_format or "", plain)
        return kept

    def chunks(self) -> list[bytes]:
        """The body in the transport chunks of the recording where they are known, else whole."""
        body = self.body()
        pieces: list[bytes] = []
        start = 0
        for length in self.chunk_lengths or ():
            pieces.append(body[start : start + length])
            start += length
        return [piece for piece in (*pieces, body[start:]) if piece]


def _decoded(text: str, encoding: str | None) -> bytes:
    return base64.b64decode(text) if encoding == "base64" else text.encode()


class Recordings:
    """All exchanges of a directory, found by id or by request."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._by_id = {exchange.id: exchange for exchange in exchanges}
        self._by_request: defaultdict[tuple[str, str, str], list[Exchange]] = defaultdict(list)
        self._hosts = {exchange.host for exchange in exchanges}
        self._served: Counter[tuple[str, str, str, str]] = Counter()
        for exchange in exchanges:
            digest = hashlib.sha256(exchange.request_bytes()).hexdigest()
            self._by_request[exchange.method, unquote(exchange.path), digest].append(exchange)

    @classmethod
    def load(cls, directory: Path) -> Recordings:
        """Read every *.json of `directory`. ValueError naming a file that is not an exchange, or if there is none."""
        decoder = msgspec.json.Decoder(Exchange)
        exchanges = []
        for path in sorted(directory.glob("*.json")):
            try:
                exchanges.append(decoder.decode(path.read_bytes()))
            except msgspec.MsgspecError as error:
                raise ValueError(f"{path} is not a recorded exchange: {error}") from None
        if not exchanges:
            raise ValueError(f"{directory} holds no recorded exchange")
        return cls(exchanges)

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, exchange_id: str, host: str, method: str, target: str, body_sha256: str) -> Exchange:
        """The exchange named, or the next one recorded for this request. FakeError 404 naming what was looked for.

        A host nobody recorded (127.0.0.1, where the fake is addressed directly) matches every host; percent
        encoding in the target is looked through, since clients differ in what they encode. Where several
        exchanges match they are served in the order of their ids, again and again.
        """
        if exchange_id:
            return self._named(exchange_id)
        wanted = host if host in self._hosts else ""
        found = self._by_request.get((method, unquote(target), body_sha256), [])
        found = [exchange for exchange in found if wanted in ("", exchange.host)]
        if not found:
            raise FakeError(
                404, f"no exchange recorded for {method} {host}{target} with a body of sha256 {body_sha256}"
            )
        key = (wanted, method, target, body_sha256)
        self._served[key] += 1
        return found[(self._served[key] - 1) % len(found)]

    def _named(self, exchange_id: str) -> Exchange:
        if exchange_id not in self._by_id:
            raise FakeError(404, f"no exchange has the id {exchange_id!r}", EXCHANGE_HEADER)
        return self._by_id[exchange_id]


def recorded_reply(exchange: Exchange, request_headers: Mapping[str, str]) -> tuple[dict[str, str], list[bytes]]:
    """The headers and the pieces of the body to write. FakeError 400 naming a steering header that is unusable."""
    encoding = exchange.content_encoding()
    pieces = exchange.chunks()
    wanted = request_headers.get(ENCODE_HEADER)
    if wanted is not None and wanted != (encoding or "identity"):
        pieces = _encode(_identity(pieces, encoding), wanted)
        encoding = "" if wanted == "identity" else wanted
    split = request_headers.get(SPLIT_HEADER)
    headers = exchange.headers() | ({"Content-Encoding": encoding} if encoding else {})
    return headers, pieces if split is None else list(_split(b"".join(pieces), split))


def _identity(pieces: list[bytes], encoding: str) -> list[bytes]:
    return [encodings.decoded(b"".join(pieces), encoding)] if encoding else pieces


def _encode(pieces: list[bytes], encoding: str) -> list[bytes]:
    if encoding == "identity":
        return pieces
    if encoding not in encodings.NAMES:
        names = ", ".join(encodings.NAMES)
        raise FakeError(400, f"{ENCODE_HEADER}: {encoding!r} is not one of {names}, identity", ENCODE_HEADER)
    return list(encodings.encoded(pieces, encoding))


def _split(body: bytes, rule: str) -> Iterator[bytes]:
    sizes = _sizes(rule)
    start = 0
    while start < len(body):
        end = start + next(sizes)
        yield body[start:end]
        start = end


def _sizes(rule: str) -> Iterator[int]:
    kind, _, seed = rule.partition(":")
    if kind == "random":
        draws = random.Random(seed)  # noqa: S311 - reproducible sizes, not a secret
        return iter(lambda: draws.randint(1, RANDOM_PIECE_MAX_BYTES), 0)
    size = 1 if rule == "every" else int(rule) if rule.isdecimal() else 0
    if size < 1:
        raise FakeError(400, f"{SPLIT_HEADER}: {rule!r} is not a number of bytes, every or random:SEED", SPLIT_HEADER)
    return iter(lambda: size, 0)


async def replay(request: web.Request, recordings: Recordings, record: Record) -> web.StreamResponse:
    """Serve the exchange recorded for `request`. FakeError 404 or 400."""
    host = request.host.partition(":")[0]
    named = request.headers.get(EXCHANGE_HEADER, "")
    exchange = recordings.find(named, host, request.method, record.target, record.body_sha256)
    headers, pieces = recorded_reply(exchange, request.headers)
    record.status = exchange.status
    response = web.StreamResponse(status=exchange.status, headers=headers)
    if not exchange.stream and len(pieces) <= 1:
        response.content_length = sum(map(len, pieces))
    await response.prepare(request)
    for piece in pieces:
        record.response_bytes += len(piece)
        await response.write(piece)
        # Two turns of the loop: a reader in the same loop takes this piece before the next one is written.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await response.write_eof()
    record.outcome = "completed"
    return response
