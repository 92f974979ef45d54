"""A decoded copy of a compressed body for the meter, while the client's bytes stay as they are.

gzip, deflate (with or without its zlib header), br and zstd, also one upon the other ("gzip, br"). What a body may
decode to is bounded in all (`limit_bytes`), in memory (pieces of `STEP_BYTES`) and in time on the event loop
(`AT_ONCE_BYTES` a feed): what is left over waits, compressed, for `rest`.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):  # the same module, in the standard library since 3.14
    from compression import zstd
else:
    from backports import zstd

STEP_BYTES = 64 * 1024
"""Brotli's library gives up to half as much again: it fills whole buffers."""
AT_ONCE_BYTES = 256 * 1024
"""Decoded in one feed: half a millisecond. An ordinary piece from the network decodes to less."""
WAITING_BYTES_MAX = 4 * 1024 * 1024
"""Compressed bytes that may wait. More pile up only where a body keeps decoding to many times its size."""
_WINDOW_LOG_MAX = 23
"""8 MiB, the largest window that zstd as a content encoding may ask for (RFC 9659)."""
_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "br": "br", "zstd": "zstd"}
ENCODINGS = frozenset({*_NAMES, "identity"})
"""What can be read."""


class Codec(Protocol):
    """One layer. Raises its library's error, one of `_ERRORS`, on bad data."""

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        """Some `STEP_BYTES` decoded at most, and the bytes of `data` not taken yet."""
        ...

    @property
    def ready(self) -> bool:
        """More may come out without more going in."""
        ...


class _Gzip:
    """One or more gzip members."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.ready = False

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        piece = self._inflate.decompress(data, STEP_BYTES)
        self.ready = len(piece) == STEP_BYTES
        if not self._inflate.eof:
            return piece, self._inflate.unconsumed_tail
        rest = self._inflate.unused_data
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.ready = False
        return piece, rest


class _Deflate:
    """zlib's format, or the raw one that some servers send under this name: the first two bytes tell."""

    def __init__(self) -> None:
        self._inflate: zlib._Decompress | None = None
        self._start = b""
        self.ready = False

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        if self._inflate is None:
            self._start += data
            if len(self._start) < 2:
                return b"", b""
            data, self._start = self._start, b""
            wrapped = data[0] & 15 == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        if self._inflate.eof:  # zlib would keep what follows the stream, and give it back for ever
            return b"", b""
        piece = self._inflate.decompress(data, STEP_BYTES)
        self.ready = len(piece) == STEP_BYTES and not self._inflate.eof
        return piece, b"" if self._inflate.eof else self._inflate.unconsumed_tail


class _Brotli:
    """One stream. The library keeps what it was given and has not decoded yet."""

    def __init__(self) -> None:
        self._brotli = brotli.Decompressor()
        self.ready = False

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        if self._brotli.is_finished():
            return b"", b""
        given, rest = (b"", data) if self.ready else (data, b"")
        piece = self._brotli.process(given, output_buffer_limit=STEP_BYTES)
        # It stops at the end of a buffer, although more is to come out and although it would accept more data.
        self.ready = not self._brotli.is_finished() and bool(piece or not self._brotli.can_accept_more_data())
        return piece, rest


class _Zstd:
    """One or more frames. The library keeps what it was given and has not decoded yet."""

    def __init__(self) -> None:
        self._zstd = self._frame()

    @staticmethod
    def _frame() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        if self.ready:
            piece, rest = self._zstd.decompress(b"", max_length=STEP_BYTES), data
        else:
            piece, rest = self._zstd.decompress(data, max_length=STEP_BYTES), b""
        if self._zstd.eof:
            rest = self._zstd.unused_data + rest
            self._zstd = self._frame()
        return piece, rest

    @property
    def ready(self) -> bool:
        return not (self._zstd.eof or self._zstd.needs_input)


_CODECS: dict[str, type[Codec]] = {"gzip": _Gzip, "deflate": _Deflate, "br": _Brotli, "zstd": _Zstd}
_ERRORS = (zlib.error, brotli.error, zstd.ZstdError, EOFError)


class Decoder:
    """All layers of one body, the outermost first. Bad or too much data ends the decoding, never the call.

    `failed`: nothing more can be read. `lost_bytes`: compressed bytes that came and could not be.
    """

    def __init__(self, codecs: list[Codec], limit_bytes: int) -> None:
        self._codecs = codecs
        self._waiting = [b""] * len(codecs)
        self._left_bytes = limit_bytes
        self.failed = not codecs
        self.lost_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """What `data` decodes to, as far as `AT_ONCE_BYTES` go; b"" once it `failed`."""
        if self.failed:
            self.lost_bytes += len(data)
            return b""
        self._waiting[0] = self._waiting[0] + data if self._waiting[0] else data
        pieces, decoded_bytes = [], 0
        for piece in self.rest():
            pieces.append(piece)
            decoded_bytes += len(piece)
            if decoded_bytes >= AT_ONCE_BYTES:
                break
        if len(self._waiting[0]) > WAITING_BYTES_MAX:
            self._fail()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def rest(self) -> Iterator[bytes]:
        """What still waits, in pieces of some `STEP_BYTES` at most. Takes time in proportion: for a thread."""
        while self.waiting:
            try:
                piece = self._step(len(self._codecs) - 1)
            except _ERRORS:
                self._fail()
                return
            self._left_bytes -= len(piece)
            if self._left_bytes < 0:
                self._fail()
                return
            if piece:
                yield piece

    @property
    def waiting(self) -> bool:
        """There is something to decode without more bytes from the network."""
        return not self.failed and self._more()

    def _more(self) -> bool:
        return any(self._waiting) or any(codec.ready for codec in self._codecs)

    def _step(self, layer: int) -> bytes:
        """One step of the innermost layer that has something to do."""
        codec = self._codecs[layer]
        if not (self._waiting[layer] or codec.ready):
            if layer == 0:
                return b""
            self._waiting[layer] = self._step(layer - 1)
            if not self._waiting[layer]:
                return b""
        piece, self._waiting[layer] = codec.step(self._waiting[layer])
        return piece

    def _fail(self) -> None:
        self.failed = True
        self.lost_bytes += len(self._waiting[0])
        self._waiting = [b""] * len(self._codecs)


def decoder_for(encoding: str, limit_bytes: int) -> Decoder | None:
    """None for identity. For an encoding that nobody asked for, a decoder that has `failed` already."""
    names = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not names:
        return None
    if not all(name in _NAMES for name in names) or len(names) > 3:
        return Decoder([], limit_bytes)
    return Decoder([_CODECS[_NAMES[name]]() for name in reversed(names)], limit_bytes)
