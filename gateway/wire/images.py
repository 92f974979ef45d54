"""Image generation and editing: tokens where the model counts them (gpt-image), and the number of images.

Quality, size and steps, which some price lists go by, are those that the answer tells, else those that were asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.usage import ZERO, Usage
from gateway.errors import ObolError
from gateway.wire.base import BaseFormat
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.fields import COUNT_MAX, count, count_asked, decode, items, mapping, partition
from gateway.wire.media import media_of
from gateway.wire.meters import meter_for
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import decode_body, form_fields, form_files, is_form, loads, optional_model, prompt_text


class Response(msgspec.Struct):
    """A response body, or one event of a stream."""

    id: Any = None
    model: Any = None
    type: Any = None
    data: Any = None
    images: Any = None
    usage: Any = None
    quality: Any = None
    size: Any = None
    error: Any = None


class ImagesReader(Reader):
    """`asked`: how many images the request wants, for an answer too large to be counted through; `drawn`: of which
    kind one of them is."""

    def __init__(self, provider: str, asked: int = 0, drawn: Usage = ZERO) -> None:
        super().__init__(provider)
        self._asked = asked
        self._drawn = drawn
        self._made = 0

    def interesting(self, block: bytes) -> bool:
        return carries(block, b'"usage"', b'"usage":null') or b'"error"' in block

    def observe(self, data: bytes) -> bool:
        event = decode(data, Response)
        if event is None:
            return False
        self.note_failure(event.error)
        if usage := image_usage(event.usage, self._made + 1, _told(event, self._drawn)):
            self._made += 1
            self.usage = usage
            self.final = self.finished = True
        return False

    def observe_body(self, data: bytes) -> None:
        response = decode(data, Response)
        if response is None:
            return
        self.note(response.model, response.id)
        self.note_failure(response.error)
        made = len(items(response.data) or items(response.images))
        self.usage = image_usage(response.usage, made, _told(response, self._drawn))
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        """Of a body too large to be decoded whole: how many images there were is the request's to say."""
        self.usage = image_usage(usage, self._asked, self._drawn)
        self.finished = self.usage is not None

    def salvage(self, data: bytes) -> None:
        super().salvage(data)
        if self.usage is None and self._asked and b'"error"' not in data:
            self.usage, self.estimated, self.finished = _times(self._drawn, self._asked), True, True


def image_usage(value: Any, images: int, drawn: Usage = ZERO) -> Usage | None:
    """Canonical usage: tokens if reported, and how many images were made, each as `drawn`."""
    usage = mapping(value)
    inputs, outputs = mapping(usage.get("input_tokens_details")), mapping(usage.get("output_tokens_details"))
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None and not images:
        return None
    return partition(
        replace(
            _times(drawn, images) if images else ZERO,
            input_tokens=taken,
            cached_input_tokens=count(inputs.get("cached_tokens")),
            cached_image_tokens=count(mapping(inputs.get("cached_tokens_details")).get("image_tokens")),
            input_image_tokens=count(inputs.get("image_tokens")),
            output_tokens=given,
            output_image_tokens=count(outputs.get("image_tokens")),
        )
    )


def _told(response: Response, asked: Usage) -> Usage:
    """The kind of image that was made: gpt-image models tell what they took for "auto"."""
    told = drawn_of({"quality": response.quality, "size": response.size})
    sized = told.image_size is not None
    return replace(
        asked,
        image_quality=told.image_quality or asked.image_quality,
        image_size=told.image_size if sized else asked.image_size,
        image_pixels=told.image_pixels if sized else asked.image_pixels,
    )


def _times(drawn: Usage, images: int) -> Usage:
    pixels = None if drawn.image_pixels is None else drawn.image_pixels * images
    return replace(drawn, images=images, image_pixels=pixels)


class Images(BaseFormat):
    """`/images/generations`, `/images/edits`, `/images/variations`. The model may be left out of a request.

    `model`: the member that names it; Hyperbolic reads `model_name`, and clients send it both.
    """

    reader = ImagesReader

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self._model = model

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        fields: Mapping[str, Any]
        fields = form_fields(body, content_type) if is_form(body) else decode_body(body, dict[str, Any])
        images = min(_asked(fields.get("n")), IMAGES_MAX)
        return RequestFacts(
            model=optional_model(fields.get("model" if is_form(body) else self._model)),
            stream=fields.get("stream") in (True, "true"),
            choices=images,
            at_most=_at_most(body, images, drawn_of(fields)),
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        most = facts.at_most or ZERO
        pixels = None if most.image_pixels is None else most.image_pixels // facts.choices
        drawn = Usage(
            image_pixels=pixels,
            image_steps=most.image_steps,
            image_quality=most.image_quality,
            image_size=most.image_size,
        )
        reader = ImagesReader(provider, facts.choices, drawn)
        return meter_for(reader, facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        source = form_fields(body) if is_form(body) else loads(body)
        return prompt_text(source.get("prompt"))


IMAGES_MAX = 99_999
"""Asked for at once: no vendor makes as many, and with the largest sides their pixels stay exact in every store."""
MADE_TOKENS_MAX = 10_000
"""Of one image made: 6,240 of the largest in high quality, and partial ones at 100 each."""
SHOWN_TOKENS_MAX = 8_000
"""Of one image to edit, in high fidelity."""
_WORD = re.compile(r"[a-z0-9][a-z0-9:._-]{0,31}")
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SHOWN = ("image", "images", "image_url", "mask", "input_image")


def drawn_of(fields: Mapping[str, Any]) -> Usage:
    """The kind of image that a request asks for, in the words of OpenAI (`size`, `quality`), xAI (`resolution`),
    Together and Hyperbolic (`width`, `height`, `steps`) or Nebius (`num_inference_steps`)."""
    width, height = _number(fields.get("width")), _number(fields.get("height"))
    size = f"{width}x{height}" if width and height else _word(fields.get("size")) or _word(fields.get("resolution"))
    sides = _SIZE.fullmatch(size or "")
    return Usage(
        image_pixels=int(sides[1]) * int(sides[2]) if sides else None,
        image_steps=_number(fields.get("steps")) or _number(fields.get("num_inference_steps")),
        image_quality=_word(fields.get("quality")),
        image_size=size,
    )


def _asked(n: Any) -> int:
    """How many images. Raise ObolError `invalid_request` where that cannot be read: a vendor might read more."""
    number = 1 if n in (None, "") else _number(n, COUNT_MAX)
    if number is None:
        raise ObolError("invalid_request", "n, the number of images, is not a number from 1", param="n")
    return number


def _number(value: Any, most: int = 99_999) -> int | None:
    """A number of a body or, as text, of a form; None where it is not 1 to `most`."""
    number = count_asked(value)
    return number if number is not None and 0 < number <= most else None


def _word(value: Any) -> str | None:
    """It is stored with the usage, so nothing but a short word is taken."""
    return value.lower() if isinstance(value, str) and _WORD.fullmatch(value.lower()) else None


def _at_most(body: bytes, images: int, drawn: Usage) -> Usage:
    """Images in a form or as base64 are no text: each counts as the largest."""
    if is_form(body):
        files = form_files(body)
        shown, data_bytes = len(files), sum(end - start for start, end in files)
    else:
        media = list(media_of(body, *_SHOWN)) if b'"image' in body else []
        shown, data_bytes = len(media), sum(len(one.data) for one in media)
    return replace(
        _times(drawn, images),
        input_tokens=len(body) - data_bytes + shown * SHOWN_TOKENS_MAX,
        input_image_tokens=shown * SHOWN_TOKENS_MAX or None,
        output_tokens=images * MADE_TOKENS_MAX,
        output_image_tokens=ALL,
    )
