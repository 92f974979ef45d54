"""A decoded copy of a compressed body for the meter, while the client's bytes stay as they are."""

from __future__ import annotations

import zlib
from typing import Protocol

STEP_BYTES = 1024 * 1024


class Decoder(Protocol):
    def feed(self, data: bytes) -> bytes: ...


class Inflate:
    """gzip or deflate (with or without its zlib header). Bad or too much data ends the decoding, never the call."""

    def __init__(self, encoding: str, limit_bytes: int) -> None:
        self._gzip = encoding == "gzip"
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS if self._gzip else zlib.MAX_WBITS)
        self._left_bytes = limit_bytes
        self._raw_tried = self._gzip
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Decoded bytes; b"" once the limit is reached or the data made no sense (`failed`)."""
        if self.failed:
            return b""
        try:
            return self._decode(data)
        except zlib.error:
            if self._raw_tried:
                self.failed = True
                return b""
            self._raw_tried = True
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            return self.feed(data)

    def _decode(self, data: bytes) -> bytes:
        pieces = []
        while data and not self.failed:
            piece = self._inflate.decompress(data, STEP_BYTES)
            pieces.append(piece)
            self._left_bytes -= len(piece)
            self.failed = self._left_bytes < 0
            data = self._inflate.unconsumed_tail
            if self._inflate.eof and self._inflate.unused_data and self._gzip:
                data = self._inflate.unused_data  # a further gzip member
                self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._raw_tried = True
        return b"".join(pieces)


def decoder_for(encoding: str, limit_bytes: int) -> Inflate | None:
    """None for identity (and for an encoding that was not asked for: it cannot be metered)."""
    encoding = encoding.strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return Inflate("gzip", limit_bytes)
    if encoding == "deflate":
        return Inflate("deflate", limit_bytes)
    return None
