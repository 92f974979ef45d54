"""How long a recording plays, from the headers of WAV, FLAC, Ogg, MP3 and MP4. Nothing is decoded.

For transcriptions whose answer tells no length, and for the size of a hold. Where a container does not tell, the size
decides, at a bit rate that speech is usually sent at.
"""

from __future__ import annotations

import re

HEAD_BYTES = 128 * 1024
"""How much of either end is enough to look at."""
USUAL_BYTES_PER_S = 8_000
"""64 kbit/s: what a recording in a container that does not tell its length is taken for."""
LEAST_BYTES_PER_S = 375
"""3 kbit/s: no codec in use needs less, so a recording is no longer than its size over this."""

_SECOND_US = 1_000_000
_MP3_SYNC = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")
_MP3_RATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_SAMPLE_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


def told_us(head: bytes, size_bytes: int, tail: bytes = b"") -> int | None:
    """Microseconds of a recording of `size_bytes` that begins with `head`; None where its headers do not tell.

    `tail`: its last bytes, where Ogg tells the length and MP4 may.
    """
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return _wav(head, size_bytes)
    if head.startswith(b"fLaC"):
        return _flac(head)
    if head.startswith(b"OggS"):
        return _ogg(head, tail or head)
    if head[4:8] == b"ftyp":
        return _mp4(head, tail)
    if head.startswith(b"ID3") or _MP3_SYNC.match(head):
        return _mp3(head, size_bytes)
    return None


def audio_us(head: bytes, size_bytes: int, tail: bytes = b"") -> int:
    """As `told_us`, else by the size."""
    told = told_us(head, size_bytes, tail)
    return size_bytes * _SECOND_US // USUAL_BYTES_PER_S if told is None else told


def _wav(head: bytes, size_bytes: int) -> int | None:
    """By the bytes there are: writers to a pipe put any number where the size of the data belongs."""
    fmt = head.find(b"fmt ", 12)
    data = head.find(b"data", 12)
    bytes_per_s = int.from_bytes(head[fmt + 16 : fmt + 20], "little")
    if fmt < 0 or data < 0 or not bytes_per_s:
        return None
    said = int.from_bytes(head[data + 4 : data + 8], "little")
    there = max(0, size_bytes - data - 8)
    return (min(said, there) or there) * _SECOND_US // bytes_per_s


def _flac(head: bytes) -> int | None:
    bits = int.from_bytes(head[18:26], "big")
    rate, samples = bits >> 44, bits & (1 << 36) - 1
    return samples * _SECOND_US // rate if rate and samples and len(head) >= 26 else None


def _ogg(head: bytes, tail: bytes) -> int | None:
    """The position of the last page: samples, for Opus always at 48 kHz."""
    page = tail.rfind(b"OggS")
    position = int.from_bytes(tail[page + 6 : page + 14], "little")
    vorbis = head.find(b"\x01vorbis", 0, 256)
    rate = int.from_bytes(head[vorbis + 12 : vorbis + 16], "little") if vorbis >= 0 else 48_000
    if page < 0 or not rate or not 0 < position < 1 << 48:
        return None
    return position * _SECOND_US // rate


def _mp4(head: bytes, tail: bytes) -> int | None:
    """The movie header: `moov` stands first or last."""
    for part in (head, tail):
        at = part.find(b"mvhd")
        if at < 0:
            continue
        wide = part[at + 4 : at + 5] == b"\x01"
        scale_at, length = (at + 24, 8) if wide else (at + 16, 4)
        scale = int.from_bytes(part[scale_at : scale_at + 4], "big")
        duration = int.from_bytes(part[scale_at + 4 : scale_at + 4 + length], "big")
        if scale and 0 < duration < 1 << 48:
            return duration * _SECOND_US // scale
    return None


def _mp3(head: bytes, size_bytes: int) -> int | None:
    """By the frames that a Xing header tells, else by the bit rate of the first frame."""
    start = _after_id3(head)
    found = _MP3_SYNC.search(head, start)
    if found is None:
        return None
    at = found.start()
    version, layer = head[at + 1] >> 3 & 3, 4 - (head[at + 1] >> 1 & 3)
    sample_index = head[at + 2] >> 2 & 3
    if version == 1 or layer == 4 or sample_index == 3:
        return None
    generation = 1 if version == 3 else 2
    sample_rate = _MP3_SAMPLE_RATES[version][sample_index]
    xing = max(head.find(b"Xing", at, at + 64), head.find(b"Info", at, at + 64))
    if xing >= 0 and head[xing + 7 : xing + 8] and head[xing + 7] & 1:
        frames = int.from_bytes(head[xing + 8 : xing + 12], "big")
        return frames * (1_152 if generation == 1 else 576) * _SECOND_US // sample_rate
    kbps = _MP3_RATES_KBPS[generation, layer][(head[at + 2] >> 4) - 1]
    return max(0, size_bytes - at) * 8 * 1_000 // kbps


def _after_id3(head: bytes) -> int:
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
