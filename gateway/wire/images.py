"""Image generation and editing: tokens where the model counts them (gpt-image), and the number of images."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, decode, items, mapping, partition
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import decode_body, form_fields, is_form, loads, optional_model, prompt_text


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
    def interesting(self, block: bytes) -> bool:
        return carries(block, b'"usage"', b'"usage":null') or b'"error"' in block

    def observe(self, data: bytes) -> bool:
        event = decode(data, Response)
        if event is None:
            return False
        self.note_failure(event.error)
        if usage := image_usage(event.usage, 1):
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
        self.usage = image_usage(usage, 0)
        self.finished = self.usage is not None


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
        return RequestFacts(model=optional_model(model), stream=stream, choices=max(images, 1))

    def request_text(self, body: bytes) -> str:
        source = form_fields(body) if is_form(body) else loads(body)
        return prompt_text(source.get("prompt"))
