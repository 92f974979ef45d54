"""Image generation and editing: tokens where the model counts them (gpt-image), and the number of images."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.fields import count, decode, items, mapping, partition
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
    error: Any = None


class ImagesReader(Reader):
    """`asked`: how many images the request wants, for an answer too large to be counted through."""

    def __init__(self, provider: str, asked: int = 0) -> None:
        super().__init__(provider)
        self._asked = asked
        self._made = 0

    def interesting(self, block: bytes) -> bool:
        return carries(block, b'"usage"', b'"usage":null') or b'"error"' in block

    def observe(self, data: bytes) -> bool:
        event = decode(data, Response)
        if event is None:
            return False
        self.note_failure(event.error)
        if usage := image_usage(event.usage, self._made + 1):
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
        self.usage = image_usage(response.usage, len(items(response.data) or items(response.images)))
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        """Of a body too large to be decoded whole: how many images there were is the request's to say."""
        self.usage = image_usage(usage, self._asked)
        self.finished = self.usage is not None

    def salvage(self, data: bytes) -> None:
        super().salvage(data)
        if self.usage is None and self._asked and b'"error"' not in data:
            self.usage, self.estimated, self.finished = Usage(images=self._asked), True, True


def image_usage(value: Any, images: int) -> Usage | None:
    """Canonical usage: tokens if reported, and how many images were made."""
    usage = mapping(value)
    inputs, outputs = mapping(usage.get("input_tokens_details")), mapping(usage.get("output_tokens_details"))
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None and not images:
        return None
    return partition(
        Usage(
            input_tokens=taken,
            cached_input_tokens=count(inputs.get("cached_tokens")),
            cached_image_tokens=count(mapping(inputs.get("cached_tokens_details")).get("image_tokens")),
            input_image_tokens=count(inputs.get("image_tokens")),
            output_tokens=given,
            output_image_tokens=count(outputs.get("image_tokens")),
            images=images or None,
        )
    )


class Images(BaseFormat):
    """`/images/generations`, `/images/edits`, `/images/variations`. The model may be left out of a request.

    `model`: the member that names it; Hyperbolic reads `model_name`, and clients send it both.
    """

    reader = ImagesReader

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        self._model = model

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        if is_form(body):
            fields = form_fields(body, content_type)
            model, wanted, stream = fields.get("model"), fields.get("n", ""), fields.get("stream") == "true"
            images = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 6 else 1
        else:
            request = decode_body(body, dict[str, Any])
            model, images, stream = (
                request.get(self._model),
                count(request.get("n")) or 1,
                request.get("stream") is True,
            )
        images = max(images, 1)
        return RequestFacts(model=optional_model(model), stream=stream, choices=images, at_most=_at_most(body, images))

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        reader = ImagesReader(provider, facts.choices)
        return meter_for(reader, facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        source = form_fields(body) if is_form(body) else loads(body)
        return prompt_text(source.get("prompt"))


MADE_TOKENS_MAX = 10_000
"""Of one image made: 6,240 of the largest in high quality, and partial ones at 100 each."""
SHOWN_TOKENS_MAX = 8_000
"""Of one image to edit, in high fidelity."""
_SHOWN = ("image", "images", "image_url", "mask", "input_image")


def _at_most(body: bytes, images: int) -> Usage:
    """Images in a form or as base64 are no text: each counts as the largest."""
    if is_form(body):
        files = form_files(body)
        shown, data_bytes = len(files), sum(end - start for start, end in files)
    else:
        media = list(media_of(body, *_SHOWN)) if b'"image' in body else []
        shown, data_bytes = len(media), sum(len(one.data) for one in media)
    return Usage(
        input_tokens=len(body) - data_bytes + shown * SHOWN_TOKENS_MAX,
        input_image_tokens=shown * SHOWN_TOKENS_MAX or None,
        output_tokens=images * MADE_TOKENS_MAX,
        output_image_tokens=ALL,
        images=images,
    )
