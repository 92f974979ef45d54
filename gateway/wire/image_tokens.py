"""How many tokens an image is: the vendors' own rules, from their guides on images, tokens and PDF support.

For models that no rule names, OpenAI's for gpt-4o is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gateway.wire.image_size import Size


class Rules(NamedTuple):
    """How one vendor counts. `image` takes model, size and detail; size None: the most an image can be."""

    image: Callable[[str, Size | None, str], int]
    audio_tokens_per_s: int
    page_tokens: int


def openai_image(model: str, size: Size | None, detail: str) -> int:
    """Tiles of 512 pixels, or patches of 32 with a factor, as the model goes."""
    family = _longest(_PATCH_FACTORS_PERCENT.keys() | _TILES.keys(), model)
    if family in _PATCH_FACTORS_PERCENT:
        patches = _PATCHES_MAX if size is None else min(_patches(size), _PATCHES_MAX)
        return -(-patches * _PATCH_FACTORS_PERCENT[family] // 100)
    base, tile = _TILES.get(family, _TILES["gpt-4o"])
    if detail == "low":
        return base
    return base + tile * (_TILES_MAX if size is None else _tiles(size))


# From OpenAI's guide: factors of the models that count patches, base and tile tokens of the others.
_PATCH_FACTORS_PERCENT = {
    "gpt-4.1-mini": 162,
    "gpt-4.1-nano": 246,
    "gpt-5-mini": 162,
    "gpt-5-nano": 246,
    "o4-mini": 172,
}
_TILES = {
    "gpt-4o": (85, 170),
    "gpt-4.1": (85, 170),
    "gpt-4.5": (85, 170),
    "gpt-4o-mini": (2_833, 5_667),
    "gpt-5": (70, 140),
    "o1": (75, 150),
    "o3": (75, 150),
    "computer-use-preview": (65, 129),
}
_PATCHES_MAX = 1_536
_TILES_MAX = 8
"""768 by 2,048 pixels, to which every image is shrunk."""


def _longest(names: Iterable[str], model: str) -> str:
    """The longest name that `model` begins with, "" if there is none."""
    name = model.rpartition("/")[2].lower()
    return max((known for known in names if name.startswith(known)), key=len, default="")


def _patches(size: Size) -> int:
    return math.ceil(size.width / 32) * math.ceil(size.height / 32)


def _tiles(size: Size) -> int:
    """Shrunk to fit 2,048 pixels, then to 768 on the shorter side, and cut into squares of 512."""
    scale = min(1.0, 2_048 / max(size))
    scale *= min(1.0, 768 / (min(size) * scale))
    return math.ceil(size.width * scale / 512) * math.ceil(size.height * scale / 512)


def anthropic_image(model: str, size: Size | None, _detail: str) -> int:
    """Width by height over 750, shrunk to 1,568 pixels and 1,600 tokens; newer models take 2,576 and 4,784."""
    fine = _FINE_CLAUDE.search(model) is not None
    edge, most = (2_576, 4_784) if fine else (1_568, 1_600)
    if size is None:
        return most
    scale = min(1.0, edge / max(size))
    return min(most, math.ceil(size.width * scale * size.height * scale / 750))


_FINE_CLAUDE = re.compile(r"claude-(?!3|[a-z]+-4-[0-6](?!\d)|[a-z]+-4-20|[a-z]+-4(?!-))")


def google_image(model: str, size: Size | None, _detail: str) -> int:
    """258 tokens a tile of 768 pixels, one for a small image; 1,120 an image since Gemini 3."""
    if not re.search(r"gemini-(?:1|2)", model):
        return 2_240 if size is None else 1_120
    if size is None:
        return 258 * 16
    if max(size) <= 384:
        return 258
    return min(258 * math.ceil(size.width / 768) * math.ceil(size.height / 768), 258 * 16)


OPENAI = Rules(openai_image, audio_tokens_per_s=10, page_tokens=2_000)
ANTHROPIC = Rules(anthropic_image, audio_tokens_per_s=32, page_tokens=3_000)
GOOGLE = Rules(google_image, audio_tokens_per_s=32, page_tokens=258)
