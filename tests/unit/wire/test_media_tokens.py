"""Images, sound and files in a prompt: sizes read from headers, lengths, and the vendors' rules for their tokens."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import pytest
from recorded import exchanges

from gateway.core.usage import Usage
from gateway.wire.audio_length import USUAL_BYTES_PER_S, audio_us, told_us
from gateway.wire.formats import FORMATS
from gateway.wire.image_size import Size, image_size
from gateway.wire.image_tokens import anthropic_image, google_image, openai_image
from gateway.wire.media import Media, media_in


def png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(30)


def jpeg(width: int, height: int) -> bytes:
    exif = b"\xff\xe1" + struct.pack(">H", 2_002) + bytes(2_000)
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + exif + b"\xff" + frame


def webp(kind: bytes, width: int, height: int) -> bytes:
    body = {
        b"VP8 ": bytes(10) + struct.pack("<HH", width, height),
        b"VP8X": bytes(8) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        b"VP8L": bytes(4) + b"\x2f" + ((height - 1) << 14 | width - 1).to_bytes(4, "little"),
    }[kind]
    return b"RIFF" + bytes(4) + b"WEBP" + kind + body


@pytest.mark.parametrize(
    "image",
    [
        png(640, 480),
        jpeg(640, 480),
        b"GIF89a" + struct.pack("<HH", 640, 480),
        b"BM" + bytes(16) + struct.pack("<II", 640, 480),
        webp(b"VP8 ", 640, 480),
        webp(b"VP8X", 640, 480),
        webp(b"VP8L", 640, 480),
    ],
    ids=["png", "jpeg", "gif", "bmp", "vp8", "vp8x", "vp8l"],
)
def test_sizes_are_read_from_the_headers(image: bytes) -> None:
    assert image_size(image) == Size(640, 480)
    for end in range(len(image)):
        assert image_size(image[:end]) in (None, Size(640, 480))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff" * 5_000, b"<svg/>", png(0, 9)]
)
def test_what_is_no_image_has_no_size(data: bytes) -> None:
    assert image_size(data) is None


# From OpenAI's guide: 1,024 square is shrunk to 768 square, four tiles; 2,048 by 4,096 to 768 by 1,536, six.
@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", Size(1_024, 1_024), "high", 765),
        ("gpt-4o", Size(2_048, 4_096), "", 1_105),
        ("gpt-4o", Size(4_096, 8_192), "low", 85),
        ("gpt-4o", Size(100, 100), "", 255),
        ("gpt-4o-mini-2024-07-18", Size(1_024, 1_024), "auto", 25_501),
        ("openai/gpt-5", Size(1_024, 1_024), "", 630),
        ("o1", Size(1_024, 1_024), "", 675),
        ("gpt-4.1-mini", Size(1_024, 1_024), "", 1_659),
        ("gpt-4.1-nano", Size(1_024, 1_024), "", 2_520),
        ("gpt-5-mini", Size(9_000, 9_000), "", 2_489),
        ("pixtral-12b", Size(1_024, 1_024), "", 765),
        ("gpt-4o", None, "", 1_445),
    ],
)
def test_openai_counts_tiles_or_patches(model: str, size: Size | None, detail: str, tokens: int) -> None:
    assert openai_image(model, size, detail) == tokens


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("claude-sonnet-4-5", Size(200, 200), 54),
        ("claude-sonnet-4-5", Size(1_000, 1_000), 1_334),
        ("claude-3-5-sonnet-latest", Size(1_092, 1_092), 1_590),
        ("claude-sonnet-4-20250514", Size(8_000, 8_000), 1_600),
        ("claude-opus-4-7", Size(8_000, 8_000), 4_784),
        ("claude-opus-5", None, 4_784),
        ("claude-opus-4", None, 1_600),
    ],
)
def test_anthropic_counts_pixels(model: str, size: Size | None, tokens: int) -> None:
    assert anthropic_image(model, size, "") == tokens


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gemini-2.5-flash", Size(384, 384), 258),
        ("gemini-2.5-flash", Size(385, 100), 258),
        ("gemini-2.0-flash", Size(1_536, 769), 4 * 258),
        ("gemini-3-pro-preview", Size(10, 10), 1_120),
        ("gemini-3-pro-preview", None, 2_240),
    ],
)
def test_google_counts_tiles(model: str, size: Size | None, tokens: int) -> None:
    assert google_image(model, size, "") == tokens


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


IMAGE = base64.b64encode(png(1_000, 1_000)).decode()
WAV_SECOND = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16) + b"data\0\0\0\0"
SOUND = base64.b64encode(WAV_SECOND + bytes(64_000)).decode()

MESSAGES: list[tuple[str, dict[str, Any], str, Usage]] = [
    (
        "openai_chat",
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": data_url(png(512, 512))}}]}]},
        "gpt-4o",
        Usage(input_tokens=255, input_image_tokens=255),
    ),
    (
        "openai_chat",
        {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}]}]},
        "gpt-audio",
        Usage(input_tokens=20, input_audio_tokens=20),
    ),
    (
        "openai_responses",
        {"input": [{"content": [{"type": "input_image", "image_url": "https://x.test/y.png", "detail": "low"}]}]},
        "gpt-4o",
        Usage(input_tokens=85, input_image_tokens=85),
    ),
    (
        "anthropic_messages",
        {"messages": [{"content": [{"type": "image", "source": {"type": "base64", "data": IMAGE}}]}]},
        "claude-sonnet-4-5",
        Usage(input_tokens=1_334, input_image_tokens=1_334),
    ),
    (
        "gemini_generate",
        {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": IMAGE}}, {"text": "what?"}]}]},
        "gemini-2.5-pro",
        Usage(input_tokens=4 * 258, input_image_tokens=4 * 258),
    ),
    (
        "gemini_generate",
        {"contents": [{"parts": [{"inline_data": {"mime_type": "audio/wav", "data": SOUND}}]}]},
        "gemini-2.5-pro",
        Usage(input_tokens=64, input_audio_tokens=64),
    ),
    (
        "gemini_generate",
        {
            "contents": [
                {"parts": [{"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0xLjMKL1R5cGUgL1BhZ2U="}}]}
            ]
        },
        "gemini-2.5-pro",
        Usage(input_tokens=258),
    ),
    ("openai_embeddings", {"input": [[1, 2, 3], [4]]}, "text-embedding-3-small", Usage(input_tokens=4)),
    ("openai_completions", {"prompt": [1, 2, 3]}, "davinci-002", Usage(input_tokens=3)),
    (
        "cohere_embed",
        {"images": [data_url(png(512, 512))]},
        "embed-v4.0",
        Usage(input_tokens=255, input_image_tokens=255),
    ),
]


@pytest.mark.parametrize(("name", "request_body", "model", "usage"), MESSAGES)
def test_media_of_each_dialect_are_counted(name: str, request_body: dict[str, Any], model: str, usage: Usage) -> None:
    body = json.dumps({"model": model, **request_body}).encode()
    assert FORMATS[name].request_media(body, model) == usage
    assert SOUND[:40] not in FORMATS[name].request_text(body)


def test_text_alone_has_no_media() -> None:
    for name in FORMATS:
        found = FORMATS[name].request_media(b'{"model":"m","messages":[{"content":"hi"}],"input":"hi"}', "m")
        assert not found.input_tokens, name


def test_free_form_objects_are_text_whatever_they_hold() -> None:
    """A tool's arguments with an image in them: the model reads the base64."""
    blob = {"inlineData": {"mimeType": "image/png", "data": IMAGE}}
    parts = [{"functionCall": {"name": "f", "args": blob}}, {"functionResponse": {"response": blob}}]
    assert list(media_in({"parts": parts})) == []
    assert list(media_in([{"type": "tool_use", "input": {"source": {"type": "base64", "data": "AAAA"}}}])) == []
    assert list(media_in({"parts": [blob]})) == [Media("image", IMAGE)]


def test_deep_nesting_does_no_harm() -> None:
    value: Any = {"image_url": "https://x.test"}
    for _ in range(100_000):
        value = [value]
    assert list(media_in(value)) == [Media("image")]


def test_recorded_images_cost_what_the_vendors_said() -> None:
    """Estimates of recorded prompts with images of known size, within a tenth of what was billed."""
    close = 0
    for one in exchanges():
        if one.format not in ("openai_chat", "openai_responses") or b";base64," not in one.request:
            continue
        if (
            one.provider not in ("openai", "cerebras")
            or one.expected["input_tokens"] is None
            or b"audio" in one.request
        ):
            continue
        media = FORMATS[one.format].request_media(one.request, one.expected["model"])
        text_tokens = len(FORMATS[one.format].request_text(one.request)) // 4
        assert media.input_image_tokens and abs(
            media.input_image_tokens + text_tokens - one.expected["input_tokens"]
        ) < (one.expected["input_tokens"] // 8), one.id
        close += 1
    assert close >= 3


def flac(rate: int, samples: int) -> bytes:
    bits = rate << 44 | 1 << 41 | 15 << 36 | samples
    return b"fLaC\0\0\0\x22" + bytes(10) + bits.to_bytes(8, "big") + bytes(16)


def ogg(granule: int, head: bytes) -> bytes:
    return b"OggS\0\2" + bytes(8) + bytes(14) + head + b"OggS\0\4" + struct.pack("<Q", granule) + bytes(14)


def mp4(scale: int, duration: int, *, wide: bool = False) -> bytes:
    times = struct.pack(">QQIQ", 0, 0, scale, duration) if wide else struct.pack(">IIII", 0, 0, scale, duration)
    return b"\0\0\0\x1cftypM4A " + bytes(16) + b"\0\0\0\x6cmvhd" + (b"\1" if wide else b"\0") + bytes(3) + times


def mp3(size_bytes: int, xing_frames: int = 0, *, id3: int = 0) -> bytes:
    """128 kbit/s at 44.1 kHz, in one frame header that says so."""
    tag = b"ID3\4\0\0" + bytes([0, 0, id3 >> 7, id3 & 127]) + bytes(id3) if id3 else b""
    head = b"\xff\xfb\x90\x00" + bytes(32)
    if xing_frames:
        head += b"Info" + struct.pack(">II", 1, xing_frames)
    return (tag + head).ljust(size_bytes, b"\0")


@pytest.mark.parametrize(
    ("recording", "length_us"),
    [
        (WAV_SECOND + bytes(32_000), 1_000_000),
        (flac(44_100, 441_000), 10_000_000),
        (ogg(96_000, b"OpusHead"), 2_000_000),
        (ogg(44_100, b"\x01vorbis" + bytes(5) + struct.pack("<I", 22_050)), 2_000_000),
        (mp4(1_000, 2_196), 2_196_000),
        (mp4(48_000, 96_000, wide=True), 2_000_000),
        (mp3(16_000), 1_000_000),
        (mp3(16_000 + 1_034, id3=1_024), 1_000_000),
        (mp3(500, 383), 383 * 1_152 * 1_000_000 // 44_100),
    ],
    ids=["wav", "flac", "opus", "vorbis", "mp4", "mp4 wide", "mp3", "mp3 tagged", "mp3 counted"],
)
def test_lengths_are_read_from_the_headers(recording: bytes, length_us: int) -> None:
    assert told_us(recording, len(recording), recording) == length_us
    for end in range(0, min(len(recording), 300), 3):
        assert (told_us(recording[:end], end) or 0) >= 0


@pytest.mark.parametrize("data", [b"", b"RIFF", b"webm or whatever", b"\xff\xfb\xf0\x00", b"OggS", b"fLaC", b"ID3"])
def test_without_a_length_the_size_decides(data: bytes) -> None:
    assert told_us(data, 80_000) is None
    assert audio_us(data, 80_000) == 80_000 * 1_000_000 // USUAL_BYTES_PER_S


def test_recorded_uploads_are_as_long_as_the_provider_said() -> None:
    """OpenAI: a token for each 100 ms."""
    checked = 0
    for one in exchanges():
        if one.format == "audio_transcriptions" and one.request and one.extra.get("audio_input_tokens"):
            counted = one.facts().counted
            assert counted is not None and counted.input_audio_tokens == one.extra["audio_input_tokens"], one.id
            checked += 1
    assert checked
