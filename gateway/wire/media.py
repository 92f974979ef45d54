"""Images, audio and files in a prompt: where they stand in a request, and how many tokens they are.

The counts serve where a provider reports no usage, and bound what a call can cost before it is made.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gateway.core.usage import Usage
from gateway.wire.audio_length import audio_us
from gateway.wire.fields import Json, mapping, text
from gateway.wire.image_size import Size, image_size
from gateway.wire.image_tokens import Rules
from gateway.wire.requests import loads

CONTEXT_TOKENS = 1_048_576
"""The largest context window on offer: what a prompt that is partly elsewhere (a file, earlier turns) can hold."""
_HEAD_CHARACTERS = 256 * 1024
"""Base64 of an image or sound that is looked at: its headers stand within."""
_TYPICAL_SIZE = Size(1_024, 1_024)
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_FILE_BYTES_PER_TOKEN = 4


class Media(NamedTuple):
    """One piece. `data`: base64, "" where the prompt only refers to it."""

    kind: str
    """"image", "audio" or "file"."""
    data: str = ""
    detail: str = ""

    def head(self) -> bytes:
        """The first bytes, decoded; b"" where they are not base64."""
        head = self.data[: min(_HEAD_CHARACTERS, len(self.data) // 4 * 4)]
        try:
            return base64.b64decode(head)
        except (binascii.Error, ValueError):
            return b""

    @property
    def size_bytes(self) -> int:
        return len(self.data) * 3 // 4


def media_in(*values: Any) -> Iterator[Media]:
    """The media in messages, contents or inputs of any of the vendors, in no order."""
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            found = _media(value)
            if found is None:
                stack.extend(member for name, member in value.items() if name not in _AS_TEXT)
            else:
                yield found


# Free-form objects, which models read as text, whatever stands in them.
_AS_TEXT = frozenset({"args", "arguments", "input", "parameters", "response", "input_schema", "schema"})


def media_of(body: bytes, *members: str) -> Iterator[Media]:
    """The media in these members of a request. The body is decoded when the first one is asked for."""
    request = loads(body)
    yield from media_in(*map(request.get, members))


def _media(part: Json) -> Media | None:
    """The medium that this object is, None if it is none."""
    for name, kind in _LINKS.items():
        if name in part:
            return _linked(part[name], kind, text(part.get("detail")) or "")
    if isinstance(part.get("source"), dict) and part["source"].get("type") != "content":
        return _anthropic(part["source"], text(part.get("type")) or "")
    for name in ("inlineData", "inline_data", "fileData", "file_data"):
        if isinstance(part.get(name), dict):
            return _google(part[name])
    if "file_id" in part or part.get("type") in ("input_file", "input_image", "input_video"):
        kind = "image" if part.get("type") == "input_image" else "file"
        return Media(kind, _base64(part.get("file_data")), text(part.get("detail")) or "")
    return None


_LINKS = {
    "image_url": "image",
    "input_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
    "file": "file",
    "video_url": "file",
}


def _linked(value: Any, kind: str, detail: str) -> Media:
    """OpenAI's: a URL (perhaps a data: one), or an object with one, with data, or with the id of a file or of sound.
    Mistral's sound is a URL or bare base64."""
    inner = mapping(value)
    link = value if isinstance(value, str) else inner.get("url") or inner.get("file_data")
    if isinstance(link, str) and kind == "audio" and "://" not in link[:16] and not link.startswith("data:"):
        return Media(kind, link)
    data = _base64(link) if link else text(inner.get("data")) or ""
    return Media(kind, data, text(inner.get("detail")) or detail)


def _anthropic(source: Json, kind: str) -> Media:
    data = text(source.get("data")) or "" if source.get("type") in ("base64", "text") else ""
    return Media("image" if kind == "image" else "file", data)


def _google(blob: Json) -> Media:
    family = str(blob.get("mimeType") or blob.get("mime_type")).partition("/")[0]
    return Media(family if family in ("image", "audio") else "file", text(blob.get("data")) or "")


def _base64(link: Any) -> str:
    """The base64 of a data: URL, "" of any other."""
    if not isinstance(link, str) or not link.startswith("data:"):
        return ""
    return link.partition(";base64,")[2]


def media_usage(media: Iterable[Media], rules: Rules, model: str) -> Usage:
    """Tokens of what a prompt shows or names. An image at a URL is taken for one of 1,024 by 1,024 pixels;
    of sound and files that are elsewhere nothing is known and nothing counted."""
    images = audio = files = 0
    for one in media:
        if one.kind == "image":
            images += rules.image(model, image_size(one.head()) or _TYPICAL_SIZE, one.detail)
        elif one.kind == "audio" and one.data:
            audio += audio_us(one.head(), one.size_bytes) * rules.audio_tokens_per_s // 1_000_000
        elif one.data:
            files += _file_tokens(one, rules)
    return Usage(
        input_tokens=images + audio + files,
        input_image_tokens=images or None,
        input_audio_tokens=audio or None,
    )


def _file_tokens(file: Media, rules: Rules) -> int:
    head = file.head()
    if not head.startswith(b"%PDF"):
        return -(-file.size_bytes // _FILE_BYTES_PER_TOKEN)
    return max(1, len(_PAGE.findall(head))) * rules.page_tokens


def media_at_most(media: Iterable[Media], rules: Rules, model: str) -> tuple[Usage, int]:
    """The most tokens that media can be, and how many bytes of the body their data is, which is no text."""
    images = audio = files = data_bytes = 0
    for one in media:
        data_bytes += len(one.data)
        if one.kind == "image":
            images += rules.image(model, None, one.detail)
        elif one.kind == "audio":
            inline = one.size_bytes // _AUDIO_BYTES_PER_TOKEN_MIN + _AUDIO_TOKENS_MIN
            audio += inline if one.data else _AUDIO_ELSEWHERE_TOKENS
        else:
            files += 2 * len(one.data) + rules.page_tokens if one.data else CONTEXT_TOKENS
    files = min(files, CONTEXT_TOKENS)
    most = Usage(
        input_tokens=images + audio + files,
        input_image_tokens=images or None,
        input_audio_tokens=audio or None,
    )
    return most, data_bytes


_AUDIO_BYTES_PER_TOKEN_MIN = 12
"""32 tokens a second of sound at 3 kbit/s: no codec in use needs less."""
_AUDIO_TOKENS_MIN = 64
_AUDIO_ELSEWHERE_TOKENS = 131_072
"""An hour and more at 32 tokens a second: the window of the models that hear."""
