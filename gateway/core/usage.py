"""What one call used, in disjoint terms that add up.

A field is None when the provider did not report it and 0 when it reported zero; the two are never
confused (a missing field falls back field by field, an explicit zero stays zero).
"""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Usage of one request, canonical over all providers.

    `input_tokens` counts every billed prompt token: `cached_input_tokens` (read from a cache),
    `cache_write_tokens` (written to one; of which `cache_write_1h_tokens` with the one-hour lifetime),
    `input_audio_tokens`, `input_image_tokens` (pages of documents among them) and `input_video_tokens` are parts of
    it; `cached_audio_tokens` and `cached_image_tokens` of both these and the cached ones. `output_tokens` counts every
    billed token produced: `reasoning_tokens`, `output_audio_tokens` and `output_image_tokens` are parts of it.
    Durations are microseconds so that "12.345 seconds" stays exact; characters are code points. Calls to an API
    without a format of its own have bytes, and as `output_us` the time that the answer took. Of images made,
    `image_pixels` is width by height, added up, and `image_steps` the steps of each; `image_quality` and `image_size`
    are the words of the request, which some price lists go by.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    input_audio_tokens: int | None = None
    cached_audio_tokens: int | None = None
    cached_image_tokens: int | None = None
    input_image_tokens: int | None = None
    input_video_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    output_audio_tokens: int | None = None
    output_image_tokens: int | None = None
    input_characters: int | None = None
    output_characters: int | None = None
    input_us: int | None = None
    output_us: int | None = None
    images: int | None = None
    image_pixels: int | None = None
    image_steps: int | None = None
    image_quality: str | None = None
    image_size: str | None = None
    search_units: int | None = None
    web_searches: int | None = None
    file_searches: int | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    extra: tuple[ExtraUsage, ...] = ()
    """Work the provider bills beside the totals above, possibly on another model."""

    @property
    def total_tokens(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)


class ExtraUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One extra iteration (Anthropic compaction, advisor; images drawn by a tool): `model` None means the request's
    own. Parts as in `Usage`, but 0 where nothing is reported."""

    kind: str
    model: str | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    input_image_tokens: int = 0
    output_tokens: int = 0
    output_image_tokens: int = 0


ZERO = Usage()
