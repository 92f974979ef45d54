"""The client's request body: read whole where the meter must see it, passed on piece by piece elsewhere. Bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from gateway.errors import ObolError


def declared_length(request: web.BaseRequest, limit_bytes: int) -> int | None:
    """The Content-Length, None for a chunked body. Raise `body_too_large` before a byte is read."""
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise _too_large(limit_bytes)
    return length


async def read_whole(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body. Raise `body_too_large` as soon as it is."""
    declared_length(request, limit_bytes)
    if not request.body_exists:
        return b""
    content, pieces, size = request.content, [], 0
    while not content.at_eof():
        piece = await content.readany()
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def pieces_of(request: web.BaseRequest, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raise `body_too_large` at the piece that makes it so."""
    size = 0
    while not request.content.at_eof():
        piece = await request.content.readany()
        size += len(piece)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        if piece:
            yield piece


def _too_large(limit_bytes: int) -> ObolError:
    return ObolError("body_too_large", f"the request body exceeds {limit_bytes} bytes", param="body")
