"""The size of an image in pixels, from the headers of PNG, JPEG, GIF, WebP and BMP. Reads nothing else of it."""

from __future__ import annotations

from typing import NamedTuple

_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_SEGMENTS_MAX = 1_024


class Size(NamedTuple):
    width: int
    height: int


def image_size(data: bytes) -> Size | None:
    """Of an image that begins with `data`; None where it does not tell, or tells of no pixel."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        size = _big(data, 16, 20, 4)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        size = _little(data, 6, 8, 2)
    elif data.startswith(b"BM"):
        size = _little(data, 18, 22, 4)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = _webp(data)
    elif data.startswith(b"\xff\xd8"):
        size = _jpeg(data)
    else:
        return None
    return size if size is not None and size.width > 0 and size.height > 0 else None


def _big(data: bytes, width_at: int, height_at: int, length: int) -> Size | None:
    if len(data) < max(width_at, height_at) + length:
        return None
    return Size(*(int.from_bytes(data[at : at + length], "big") for at in (width_at, height_at)))


def _little(data: bytes, width_at: int, height_at: int, length: int) -> Size | None:
    if len(data) < max(width_at, height_at) + length:
        return None
    return Size(*(int.from_bytes(data[at : at + length], "little") for at in (width_at, height_at)))


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        size = _little(data, 26, 28, 2)
        return size and Size(size.width & 0x3FFF, size.height & 0x3FFF)
    if kind == b"VP8X":
        size = _little(data, 24, 27, 3)
        return size and Size(size.width + 1, size.height + 1)
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None


def _jpeg(data: bytes) -> Size | None:
    """Walks the segments up to the frame header."""
    at = 2
    for _ in range(_JPEG_SEGMENTS_MAX):
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if len(data) < at + 4 or data[at] != 0xFF:
            return None
        if data[at + 1] in _JPEG_FRAMES:
            return _big(data, at + 7, at + 5, 2)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
