"""What aiohttp's request parser lets pass and this gateway does not.

The parser (llhttp, without its lenient flags) refuses most of what confuses two readers of one byte stream. Left to us
are targets and versions that are no business of an origin server, transfer codings before `chunked`, expectations and
upgrades that nobody here meets, trailers, and how much of a head or of chunked framing there may be. Usual requests are
not parsed twice: what is looked at here is what the parser found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp import HttpVersion10, HttpVersion11, StreamReader, hdrs
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from gateway.errors import ObolError

Parsed = tuple[RawRequestMessage, StreamReader]
Fed = tuple[Sequence[Parsed], bool, bytes]

NOTHING: Fed = ((), False, b"")
CHUNKED_END = b"\r\n0\r\n\r\n"
"""How a chunked body ends that has no trailers. A trailer is a line with a colon, so none can end like this."""
CHUNK_FRAMING_BYTES = 512 * 1024
CHUNK_FRAMING_TIMES = 8
"""A chunked body may take so many times its content, and so many bytes more: a piece of one byte takes six. The bytes
are more than one read, of which the parser may have put part aside until the handler reads on."""
TOO_MANY_HEADERS = "Too many headers"
"""How the parser's message begins where it has no exception of its own."""
IGNORED_UPGRADE = "h2c"
"""Java's HTTP client offers it with every first request in plain text. To ignore an upgrade is to decline it."""
WEBSOCKET = "websocket"
"""Whether there is one at a path is for `realtime/serve.py` to say."""

_HOST = re.compile(r"[A-Za-z0-9._~%:\[\]-]*")


class Refused(HttpProcessingError):
    """A request that no handler sees. `error` is what the client is told."""

    def __init__(self, error: ObolError) -> None:
        super().__init__(code=error.status, message=error.message)
        self.error = error


class Parser(Protocol):
    """What aiohttp's connection asks of its parser."""

    def feed_data(self, data: bytes, /) -> Fed: ...
    def feed_eof(self) -> Any: ...
    def set_upgraded(self, upgraded: bool, /) -> None: ...
    def message_consumed(self) -> None: ...
    def pause_reading(self) -> None: ...


class StrictParser:
    """The parser of one connection, and what is under way on it.

    `body` is the request body that is still coming; `part` counts the heads and bodies begun, so that whoever watches
    the clock sees that another one began. `failed`: nothing more is read. `last`: nothing is read behind the request
    that was read last. `overrun`: nor may the connection be kept for another one.
    """

    __slots__ = (
        "_chunked",
        "_end",
        "_framed_bytes",
        "_head_bytes",
        "_head_max_bytes",
        "_headers_max",
        "_host",
        "_parser",
        "body",
        "failed",
        "feed_eof",
        "last",
        "message_consumed",
        "overrun",
        "part",
        "pause_reading",
        "set_upgraded",
    )

    def __init__(self, parser: Parser, *, head_max_bytes: int, headers_max: int) -> None:
        self._parser = parser
        self._head_max_bytes = head_max_bytes
        self._headers_max = headers_max
        self._head_bytes = 0
        self._framed_bytes = 0
        self._chunked = False
        self._end = b""
        self._host = ""
        """The last one that was looked at: a connection has one."""
        self.body: StreamReader | None = None
        self.part = 0
        self.failed = False
        self.last = False
        self.overrun = False
        self.feed_eof = parser.feed_eof
        self.set_upgraded = parser.set_upgraded
        self.message_consumed = parser.message_consumed
        self.pause_reading = parser.pause_reading

    @property
    def receiving(self) -> bool:
        """Part of a request has come, and the rest is awaited."""
        return (self.body is not None or self._head_bytes > 0) and not self.failed

    def feed_data(self, data: bytes) -> Fed:
        """What the data completes, for aiohttp's connection. Raise Refused."""
        known = self.body
        if self.failed or (self.last and known is None):
            return NOTHING
        try:
            messages, upgraded, tail = self._parser.feed_data(data)
            if messages and known is not None and (self._chunked or self.last):
                messages, self.body, self.last, self.overrun = (), None, True, True  # see _begun
            elif messages:
                messages = self._begun(data, messages)
            if self.body is not None:
                self._continued(data, self.body)
            elif data and known is None and not messages:
                self._head(data)
        except HttpProcessingError as error:
            self.body = None if known is None or known.is_eof() else known  # what follows a whole body is not its fault
            self.refuse(error.error if isinstance(error, Refused) else self._told(error))
            return NOTHING
        return messages, upgraded, tail

    def refuse(self, error: ObolError) -> None:
        """Read nothing more. The handler that the body belongs to is told; where there is none, raise Refused."""
        self.failed = True
        if self.body is None:
            raise Refused(error)
        self.body.set_exception(error)

    def _head(self, data: bytes) -> None:
        """A head that is not complete yet."""
        if not self._head_bytes:
            self.part += 1
        self._head_bytes += len(data)
        if self._head_bytes > self._head_max_bytes:
            raise self._head_too_large()

    def _begun(self, data: bytes, messages: Sequence[Parsed]) -> Sequence[Parsed]:
        """Check the heads that are complete; return those that are served."""
        if self._head_bytes + len(data) > self._head_max_bytes:
            for message, _ in messages:
                if _head_bytes(message) > self._head_max_bytes:
                    raise self._head_too_large()
        self._head_bytes = 0
        self._chunked = False
        for number, (message, payload) in enumerate(messages, 1):
            check(message, payload)
            if (host := message.headers.get(hdrs.HOST, "")) != self._host:
                self._check_host(host)
            if message.chunked or message.upgrade:
                self.last = bool(message.upgrade) or number < len(messages)
                self._chunked, self._framed_bytes, self._end = bool(message.chunked), -_head_bytes(message), b""
                if self.last:
                    # What stands behind is not parsed as it was sent: the parser drops the rest of the data behind an
                    # upgrade, and takes trailers for headers of the next request.
                    messages = [*messages[: number - 1], (message._replace(should_close=True), payload)]
                    break
        self.part += 1
        self.body = payload if self._chunked or not payload.is_eof() else None
        return messages

    def _check_host(self, host: str) -> None:
        if not _HOST.fullmatch(host):
            raise _malformed("the Host header is not a host")
        self._host = host

    def _continued(self, data: bytes, body: StreamReader) -> None:
        """More of a body, or all of it."""
        if self._chunked:
            self._framed_bytes += len(data)
            self._end = (self._end + data[-len(CHUNKED_END) :])[-len(CHUNKED_END) :]
        if body.is_eof():
            self.body = None
            if self._chunked and self._end != CHUNKED_END:
                self.last = self.overrun = True
        elif self._chunked and self._framed_bytes > CHUNK_FRAMING_BYTES + CHUNK_FRAMING_TIMES * body.total_bytes:
            raise _malformed("the chunked body has more framing than content")

    def _told(self, error: HttpProcessingError) -> ObolError:
        """The parser's error in our words. Nothing of the request is repeated."""
        if isinstance(error, LineTooLong):
            return self._head_too_large().error
        if error.message.startswith(TOO_MANY_HEADERS):
            why = f"the request has more than {self._headers_max} headers"
            return ObolError("headers_too_large", why, limit="max_headers")
        if isinstance(error, InvalidURLError):
            return _malformed("the request target is not valid").error
        return _malformed(f"it is not HTTP/1.1: {error.message.partition(':')[0][:80]}").error

    def _head_too_large(self) -> Refused:
        why = f"the request line and headers exceed {self._head_max_bytes} bytes"
        return Refused(ObolError("headers_too_large", why, limit="max_header_bytes"))


def check(message: RawRequestMessage, payload: StreamReader) -> None:
    """Raise Refused for a request that is well-formed to the parser and yet not to be served."""
    headers, current = message.headers, message.version == HttpVersion11
    if message.path[:1] != "/" or "#" in message.path:
        raise _malformed("the request target is not a path")
    if not current and message.version != HttpVersion10:
        raise _malformed("the version is neither HTTP/1.1 nor HTTP/1.0")
    if hdrs.TRANSFER_ENCODING in headers:
        if not current or headers[hdrs.TRANSFER_ENCODING].lower() != "chunked":
            raise _malformed("Transfer-Encoding is anything but chunked in HTTP/1.1")
    elif payload is EMPTY_PAYLOAD and headers.get(hdrs.CONTENT_LENGTH, "0").strip("0"):
        raise _malformed("Content-Length is out of range")  # 2^64 - 1, which the parser keeps for "unknown"
    if hdrs.EXPECT in headers and current and headers[hdrs.EXPECT].lower() != "100-continue":
        raise Refused(ObolError("expectation_failed", "only the expectation 100-continue is met", param="expect"))
    if message.upgrade and headers.get(hdrs.UPGRADE, "").lower() != IGNORED_UPGRADE:
        _check_websocket(message, payload)


def _check_websocket(message: RawRequestMessage, payload: StreamReader) -> None:
    """Raise Refused for an upgrade that is not the beginning of one."""
    asked = message.method == hdrs.METH_GET and message.version == HttpVersion11 and payload is EMPTY_PAYLOAD
    if not asked or message.headers.get(hdrs.UPGRADE, "").lower() != WEBSOCKET:
        raise _malformed("there is no upgrade to another protocol here")


def _head_bytes(message: RawRequestMessage) -> int:
    """The size of a head as usually written: line ends and separators included."""
    line = len(message.method) + len(message.path) + len("  HTTP/1.1\r\n\r\n")
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in message.raw_headers)


def _malformed(why: str) -> Refused:
    return Refused(ObolError("invalid_request", f"the request is refused: {why}"))
