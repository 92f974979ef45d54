"""Content encodings of replayed bodies: each piece compressed and flushed, so that it can be read once it has come."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
NAMES = ("gzip", "deflate", "br", "zstd")


def encoded(pieces: list[bytes], encoding: str) -> Iterator[bytes]:
    """`pieces` in one of `NAMES`, and what ends the body. KeyError for another."""
    flushed, end = _COMPRESSORS[encoding](encoding)
    for piece in pieces:
        yield flushed(piece)
    yield end()


def decoded(body: bytes, encoding: str) -> bytes:
    """A whole body, as recorded. KeyError for an encoding not in `NAMES`."""
    if encoding == "br":
        return bytes(brotli.decompress(body))
    if encoding == "zstd":
        return zstd.decompress(body)
    return zlib.decompress(body, _WINDOW_BITS[encoding])


Compressor = tuple[Callable[[bytes], bytes], Callable[[], bytes]]


def _zlib(encoding: str) -> Compressor:
    stream = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    return lambda piece: stream.compress(piece) + stream.flush(zlib.Z_SYNC_FLUSH), stream.flush


def _brotli(_: str) -> Compressor:
    stream = brotli.Compressor(quality=1)
    return lambda piece: bytes(stream.process(piece) + stream.flush()), lambda: bytes(stream.finish())


def _zstd(_: str) -> Compressor:
    stream = zstd.ZstdCompressor(level=1)
    return lambda piece: stream.compress(piece, stream.FLUSH_BLOCK), stream.flush


_COMPRESSORS = {"gzip": _zlib, "deflate": _zlib, "br": _brotli, "zstd": _zstd}
