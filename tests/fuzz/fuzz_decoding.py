"""The decoder of compressed answers under fuzz: whatever comes it ends, within its limits, as the libraries would."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from random import Random

import brotli
from fuzzing import Mutator, pieces

from gateway.proxy.decoding import AT_ONCE_BYTES, STEP_BYTES, decoder_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT_BYTES = 300_000
TEXTS = (b"", b"data: hello\n\n" * 20, bytes(70_000), bytes(range(256)) * 4, bytes(2 * LIMIT_BYTES))
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS, "raw": -zlib.MAX_WBITS}
ERRORS = (zlib.error, brotli.error, zstd.ZstdError, EOFError)


def _deflated(text: bytes, kind: str) -> bytes:
    packer = zlib.compressobj(wbits=WINDOWS[kind])
    return packer.compress(text) + packer.flush()


def _inflated(data: bytes, kind: str) -> bytes:
    """What zlib makes of a complete stream. Raise zlib.error for a part of one."""
    unpacker = zlib.decompressobj(WINDOWS[kind])
    found = unpacker.decompress(data, 2 * LIMIT_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise zlib.error
    return found


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: _deflated(text, "gzip"),
    "deflate": lambda text: _deflated(text, "deflate"),
    "br": lambda text: brotli.compress(text, quality=1),
    "zstd": zstd.compress,
}
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: _inflated(data, "gzip"),
    "deflate": lambda data: _inflated(data, "deflate"),
}
ENCODINGS = [*PACK, "gzip, br", "zstd, gzip"]


def _packed(text: bytes, encoding: str) -> bytes:
    for name in encoding.split(", "):
        text = PACK[name](text)
    return text


WORDS = [
    b"\x1f\x8b\x08",
    b"\x78\x9c",
    b"\x00",
    b"\xff",
    b"\x28\xb5\x2f\xfd",
    PACK["gzip"](b""),
    b"\x0b\x02\x80",
    b"x" * 50,
]
MAKE = {name: Mutator([_packed(text, name) for text in TEXTS], WORDS, max_bytes=4_000) for name in ENCODINGS}
MAKE["deflate"] = Mutator([_deflated(text, kind) for text in TEXTS for kind in ("deflate", "raw")], WORDS)


def make(random: Random) -> bytes:
    """The number of the encoding that is declared, and a body mostly in it."""
    number = int(random.random() * len(ENCODINGS))
    packed = number if random.random() < 0.9 else int(random.random() * len(ENCODINGS))
    return bytes((number,)) + MAKE[ENCODINGS[packed]](random)


def check(data: bytes, random: Random) -> str:
    encoding, data = ENCODINGS[data[0]], data[1:]
    failed, found = _decoded([data], encoding)
    failed_in_pieces, in_pieces = _decoded(pieces(data, random), encoding)
    assert (failed_in_pieces, in_pieces) == (failed, found) or failed
    if encoding in UNPACK and not failed:
        try:
            assert UNPACK[encoding](data) == found
        except ERRORS:
            pass
    return f"{encoding}: {'failed' if failed else 'decoded'}"


def _decoded(cut: list[bytes], encoding: str) -> tuple[bool, bytes]:
    decoder = decoder_for(encoding, LIMIT_BYTES)
    assert decoder is not None
    found = []
    for piece in cut:
        decoded = decoder.feed(piece)
        assert len(decoded) <= AT_ONCE_BYTES + 2 * STEP_BYTES
        found.append(decoded)
    found += decoder.rest()
    assert not decoder.waiting
    assert sum(map(len, found)) <= LIMIT_BYTES + 2 * STEP_BYTES
    return decoder.failed, b"".join(found)
