"""What is not chat: embeddings, audio, images, moderations, files and the list of models, in OpenAI's shapes."""

from __future__ import annotations

import base64
import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

from gateway.local.fake.answer import EPOCH_S, Answer, Prompt
from gateway.local.fake.call import Call, FakeError, JsonObject
from gateway.local.fake.reply import (
    Format,
    Reply,
    body_reply,
    choices_field,
    json_reply,
    sse,
    text_field,
    whole_field,
)

DIMENSIONS_MAX = 4_096
DIMENSIONS = 1_536
AUDIO_BYTES_PER_SECOND = 16_000
SPEECH_BYTES_PER_CHARACTER = 100
IMAGE_TOKENS = 1_056
IMAGES_MAX = 10
MODELS = ("gpt-4o-mini", "gpt-5", "text-embedding-3-small", "claude-sonnet-4-5", "gemini-2.5-flash")

# A PNG of one transparent pixel.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="

_MODERATION_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "sexual",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm/intent",
    "self-harm/instructions",
    "self-harm",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def vector(text: str, dimensions: int) -> array[float]:
    """`dimensions` floats from -1 to 1 drawn from a digest of `text`. FakeError 400 above 4,096."""
    if dimensions > DIMENSIONS_MAX:
        raise FakeError(400, f"Invalid 'dimensions': expected at most {DIMENSIONS_MAX}.", "dimensions")
    draws = array("h", hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions))
    return array("f", (draw / 32_768 for draw in draws))


def read_embeddings(call: Call) -> Prompt:
    """`input` is a text, a list of texts, a list of token numbers, or a list of such lists."""
    fields = call.fields()
    model = text_field(fields, "model")
    texts = tuple(map(_embedded_text, _embedding_inputs(fields.get("input"))))
    return Prompt(call, model, texts, texts[-1:], fields=fields)


def _embedding_inputs(given: Any) -> list[Any]:
    if not isinstance(given, list):
        return [given]
    return [given] if given and isinstance(given[0], int) else given


def _embedded_text(item: Any) -> str:
    if isinstance(item, str) and item:
        return item
    if isinstance(item, list) and item and all(isinstance(number, int) for number in item):
        return " ".join(map(str, item))
    raise FakeError(400, "Invalid 'input': expected a text or an array of texts or token numbers.", "input")


def render_embeddings(answer: Answer) -> Reply:
    prompt = answer.prompt
    dimensions = whole_field(prompt.fields, "dimensions") or DIMENSIONS
    encoded = prompt.fields.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector(text, dimensions), encoded)}
        for index, text in enumerate(prompt.texts)
    ]
    body: JsonObject = {"object": "list", "data": data, "model": prompt.model}
    if answer.usage_mode != "none":
        body["usage"] = {"prompt_tokens": answer.tokens.prompt, "total_tokens": answer.tokens.prompt}
    return json_reply(body, fingerprint=answer.fingerprint)


def _encoded(values: array[float], as_base64: bool) -> list[float] | str:
    return base64.b64encode(values.tobytes()).decode() if as_base64 else values.tolist()


def read_transcription(call: Call) -> Prompt:
    """A form with `file` and `model`."""
    fields = call.fields()
    model = text_field(fields, "model")
    audio = _file(call)
    texts = (str(fields.get("prompt", "")),)
    seconds = -(-len(audio) // AUDIO_BYTES_PER_SECOND) or 1
    extras = {**fields, "seconds": seconds}
    streams = fields.get("stream") == "true" and model != "whisper-1"
    return Prompt(call, model, texts, texts, stream=streams, fields=extras)


def _file(call: Call) -> bytes:
    for part in call.parts():
        if part.name in ("file", "image", "image[]") and part.filename is not None:
            return part.data
    raise FakeError(400, "Missing required parameter: 'file'.", "file")


def render_transcription(answer: Answer) -> Reply:
    """16,000 bytes of the file count as one second; whisper-1 bills seconds, the other models tokens."""
    prompt = answer.prompt
    if prompt.stream:
        return _transcription_stream(answer)
    if prompt.fields.get("response_format") in ("text", "srt", "vtt"):
        return body_reply(f"{answer.text()}\n".encode(), "text/plain; charset=utf-8")
    body: JsonObject = {"text": answer.text()}
    if prompt.fields.get("response_format") == "verbose_json":
        body |= {
            "task": "transcribe",
            "language": "english",
            "duration": float(prompt.fields["seconds"]),
            "segments": [],
        }
    if answer.usage_mode != "none":
        body["usage"] = _transcription_usage(answer)
    return json_reply(body, fingerprint=answer.fingerprint)


def _transcription_usage(answer: Answer) -> JsonObject:
    seconds = answer.prompt.fields["seconds"]
    if answer.model == "whisper-1":
        return {"type": "duration", "seconds": seconds}
    # Ten audio tokens a second, as the real models have it; a directive's prompt_tokens is text.
    audio = 10 * seconds
    return {
        "type": "tokens",
        "input_tokens": answer.tokens.prompt + audio,
        "input_token_details": {"text_tokens": answer.tokens.prompt, "audio_tokens": audio},
        "output_tokens": answer.tokens.completion,
        "total_tokens": answer.tokens.total + audio,
    }


def _transcription_stream(answer: Answer) -> Reply:
    """Like the real one: CRLF line ends, and [DONE]."""
    done: JsonObject = {"type": "transcript.text.done", "text": answer.text()}
    if answer.usage_mode != "none":
        done["usage"] = _transcription_usage(answer)
    return Reply(
        200,
        "text/event-stream; charset=utf-8",
        deltas=(sse({"type": "transcript.text.delta", "delta": text}, newline="\r\n") for text in answer.deltas()),
        delta_count=answer.chunks,
        tail=sse(done, newline="\r\n") + b"data: [DONE]\r\n\r\n",
        error=sse({"error": {"message": "The transcription failed.", "type": "server_error"}}, newline="\r\n"),
        stream=True,
    )


def read_speech(call: Call) -> Prompt:
    fields = call.fields()
    texts = (text_field(fields, "input"),)
    return Prompt(call, text_field(fields, "model"), texts, texts)


def render_speech(answer: Answer) -> Reply:
    """100 bytes for each character, in pieces of 4 KiB; not playable audio."""
    size = SPEECH_BYTES_PER_CHARACTER * len(answer.prompt.texts[0])
    audio = hashlib.shake_256(answer.fingerprint.encode()).digest(size)
    pieces = list(_pieces(audio, 4_096))
    return Reply(200, "audio/mpeg", deltas=pieces, delta_count=len(pieces), tail=b"", stream=True)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def read_image(call: Call) -> Prompt:
    """JSON for generations, a form with an image for edits."""
    fields = call.fields()
    form = call.headers.get("content-type", "").startswith("multipart/")
    if form:
        _file(call)
    numbers = {"n": int(fields["n"])} if form and str(fields.get("n", "")).isdecimal() else fields
    model = fields.get("model") or "dall-e-2"
    text = text_field(fields, "prompt")
    return Prompt(call, str(model), (text,), (text,), choices=choices_field(numbers, "n", IMAGES_MAX), fields=fields)


def render_image(answer: Answer) -> Reply:
    """gpt-image models report tokens (1,056 an image); dall-e reports nothing, as in reality."""
    body: JsonObject = {
        "created": answer.created_s,
        "data": [{"b64_json": _PIXEL} for _ in range(answer.prompt.choices)],
    }
    if answer.model.startswith("gpt-image") and answer.usage_mode != "none":
        output = IMAGE_TOKENS * answer.prompt.choices
        text = answer.tokens.prompt
        body |= {"size": "1024x1024", "quality": "medium", "output_format": "png"}
        body["usage"] = {
            "input_tokens": text,
            "input_tokens_details": {"text_tokens": text, "image_tokens": 0},
            "output_tokens": output,
            "total_tokens": text + output,
        }
    return json_reply(body, fingerprint=answer.fingerprint)


def read_moderation(call: Call) -> Prompt:
    fields = call.fields()
    given = fields.get("input")
    inputs = given if isinstance(given, list) else [given]
    texts = tuple(item if isinstance(item, str) else "" for item in inputs)
    if given is None:
        raise FakeError(400, "Missing required parameter: 'input'.", "input")
    return Prompt(call, str(fields.get("model", "omni-moderation-latest")), texts, texts[-1:], fields=fields)


def render_moderation(answer: Answer) -> Reply:
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(_MODERATION_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _MODERATION_CATEGORIES},
    }
    body = {
        "id": f"modr-{answer.fingerprint[:24]}",
        "model": answer.model,
        "results": [result for _ in answer.prompt.texts],
    }
    return json_reply(body, fingerprint=answer.fingerprint)


def read_nothing(call: Call) -> Prompt:
    return Prompt(call, "")


def render_upload(answer: Answer) -> Reply:
    """The file's object; nothing is kept."""
    call = answer.prompt.call
    fields = call.fields()
    data = _file(call)
    names = [part.filename for part in call.parts() if part.filename is not None]
    return json_reply(
        {
            "id": f"file-{answer.fingerprint[:24]}",
            "object": "file",
            "bytes": len(data),
            "created_at": answer.created_s,
            "filename": names[0],
            "purpose": text_field(fields, "purpose"),
            "status": "processed",
        },
        fingerprint=answer.fingerprint,
    )


def render_file_list(answer: Answer) -> Reply:
    """Always empty: no upload is kept, so that every answer stays a function of its request."""
    body: JsonObject = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    return json_reply(body, fingerprint=answer.fingerprint)


def render_models(answer: Answer) -> Reply:
    """The same few models, in the shape of whoever seems to be asked."""
    call = answer.prompt.call
    if "anthropic-version" in call.headers:
        return json_reply({"data": [_anthropic_model(name) for name in MODELS], "has_more": False}, dialect="anthropic")
    if "v1beta/models" in call.path:
        return json_reply({"models": [{"name": f"models/{name}", "version": "1"} for name in MODELS]}, dialect="google")
    data = [{"id": name, "object": "model", "created": EPOCH_S, "owned_by": "fake-provider"} for name in MODELS]
    return json_reply({"object": "list", "data": data})


def _anthropic_model(name: str) -> JsonObject:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2025-10-09T00:00:00Z"}


EMBEDDINGS = Format("openai", read_embeddings, render_embeddings)
TRANSCRIPTION = Format("openai", read_transcription, render_transcription)
SPEECH = Format("openai", read_speech, render_speech)
IMAGE = Format("openai", read_image, render_image)
MODERATION = Format("openai", read_moderation, render_moderation)
UPLOAD = Format("openai", read_nothing, render_upload)
FILE_LIST = Format("openai", read_nothing, render_file_list)
MODEL_LIST = Format("openai", read_nothing, render_models)
