"""The client's request body: read whole where the meter must see it, passed on piece by piece elsewhere. Bounded.

How slowly it may come is the listener's business: it ends a body that comes too slowly with an ObolError here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import HttpVersion11, hdrs, web

from gateway.errors import ObolError
from gateway.proxy.downstream import ClientGone

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def declared_length(request: web.BaseRequest, limit_bytes: int) -> int | None:
    """The Content-Length, None for a chunked body. Raise `body_too_large` before a byte is read."""
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise _too_large(limit_bytes)
    return length


async def read_whole(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body. Raise `body_too_large` as soon as it is, ClientGone, or what the listener has against it."""
    declared_length(request, limit_bytes)
    if not request.body_exists:
        return b""
    if request.content.is_eof():  # it came with the head, as most do
        return _all_of(request, limit_bytes)
    pieces = [piece async for piece in pieces_of(request, limit_bytes)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _all_of(request: web.BaseRequest, limit_bytes: int) -> bytes:
    try:
        body = request.content.read_nowait()
    except OSError:
        raise ClientGone from None
    if len(body) > limit_bytes:
        raise _too_large(limit_bytes)
    return body


async def pieces_of(request: web.BaseRequest, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raise `body_too_large` at the piece that makes it so, and as `read_whole` does."""
    content, size = request.content, 0
    if not content.is_eof():
        _ask_for(request)
    while not content.at_eof():
        try:
            piece = await content.readany()
        except OSError:
            raise ClientGone from None
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        if piece:
            yield piece


def _ask_for(request: web.BaseRequest) -> None:
    """A client that waits to be asked for its body is asked when it is going to be read, and not before."""
    expected = request.headers.get(hdrs.EXPECT)
    if expected is None or request.version != HttpVersion11 or request.transport is None:
        return
    if not request.content.total_bytes:  # else it did not wait
        request.transport.write(CONTINUE)


def _too_large(limit_bytes: int) -> ObolError:
    return ObolError(
        "body_too_large",
        f"the request body exceeds {limit_bytes} bytes",
        param="body",
        limit="max_request_body_bytes",
    )
