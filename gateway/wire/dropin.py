"""The gateway's own model routes, which take a vendor's base URL's place: `/v1/chat/completions` and the like. Pure.

Here the path tells the wire format of the client, and the body (in Google's paths, the path) the model; which provider
has that model is found elsewhere (`billing/catalogue.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from urllib.parse import quote, unquote, unquote_plus

import msgspec

from gateway.errors import ObolError

AZURE_VERSION = "api-version"
"""A parameter of Azure's clients that no other provider knows."""
OPENAI_BASES = ("/v1", "/v1/v1", "/v1/openai", "/v1/openai/v1", "/openai/v1", "/v1beta/openai")
"""What clients of OpenAI's API, and of those who copied it, append their paths to; some bring a version as well."""
_OPENAI = {
    "/chat/completions": "openai_chat",
    "/completions": "openai_completions",
    "/responses": "openai_responses",
    "/embeddings": "openai_embeddings",
    "/images/generations": "images",
    "/images/edits": "images",
    "/images/variations": "images",
    "/audio/speech": "audio_speech",
    "/audio/transcriptions": "audio_transcriptions",
    "/audio/translations": "audio_transcriptions",
    "/moderations": "moderations",
}
_ANTHROPIC = {"/messages": "anthropic_messages", "/messages/count_tokens": "anthropic_count_tokens"}
_COHERE = {
    "/v1/chat": "cohere_v1_chat",
    "/v2/chat": "cohere_v2_chat",
    "/v1/embed": "cohere_embed",
    "/v2/embed": "cohere_embed",
    "/v2/rerank": "rerank",
}
_GEMINI = {
    "generateContent": "gemini_generate",
    "streamGenerateContent": "gemini_stream",
    "embedContent": "gemini_embed",
    "batchEmbedContents": "gemini_embed",
    "countTokens": "gemini_count_tokens",
}
_GEMINI_PATH = re.compile(rf"/v1(?:beta|alpha)?/models/([^:]{{1,600}}):({'|'.join(_GEMINI)})")
_AZURE_PATH = re.compile(r"/openai/deployments/([^/]{1,600})(/.*)")
_SPEECH_PATH = re.compile(r"/v1(/text-to-speech/[A-Za-z0-9_-]{1,100}(?:/stream)?)")


class Route(msgspec.Struct, frozen=True):
    """What a path says of a call."""

    format: str
    """The wire format that the client speaks."""
    api: str
    """The vendor's API that has the route: its base may differ from a provider's usual one."""
    suffix: str
    """What follows the base; of Google's API, with the model as `{model}`."""
    owner: str | None = None
    """The provider to ask where the name of the model alone does not tell."""
    model: str | None = None
    """The model that the path names."""

    def path(self, model: str) -> str:
        """What follows the base of a provider for this model."""
        return self.suffix.replace("{model}", quote(model, safe="@.-_"))


def route_of(raw_path: str) -> Route | None:
    """The route of a request line's target, None where it is none of these."""
    path = raw_path.partition("?")[0]
    if len(path) > 1 and path[-1] == "/":
        path = path[:-1]
    if "%" in path:
        path = unquote(path)
    return _FIXED.get(path) or _gemini(path) or _azure(path) or _speech(path)


def gateway_query(raw_query: str, route: Route) -> tuple[str, str | None, str | None]:
    """What of a query goes to the provider, and what is for the gateway: the credential (`key`), `metadata`.

    Raise ObolError `metadata_invalid` where that is given twice.
    """
    if not raw_query:
        return "", None, None
    kept, own = [], dict[str, str]()
    for parameter in raw_query.split("&"):
        name, _, value = parameter.partition("=")
        name = unquote_plus(name)
        if name in ("key", "metadata"):
            if name == "metadata" and name in own:
                raise ObolError("metadata_invalid", "The query parameter metadata is given twice.", param=name)
            own.setdefault(name, unquote(value) if name == "key" else unquote_plus(value))
        elif parameter and (name != AZURE_VERSION or route.api != "openai"):
            kept.append(parameter)
    return "&".join(kept), own.get("key"), own.get("metadata")


def route_at(target_path: str) -> Route | None:
    """The route that a provider's path corresponds to: told by what it ends in."""
    if target_path.rpartition("/")[2].count(":") == 1 and (at := target_path.rfind("/models/")) >= 0:
        return _gemini("/v1beta" + unquote(target_path[at:]))
    cut, found = len(target_path), _speech(target_path)
    for _ in range(3):
        cut = target_path.rfind("/", 0, cut)
        if cut < 0:
            break
        found = _FIXED.get(target_path[cut:]) or _FIXED.get("/v1" + target_path[cut:]) or found
    return found


def _gemini(path: str) -> Route | None:
    found = _GEMINI_PATH.fullmatch(path)
    if found is None:
        return None
    model, verb = found.groups()
    return Route(_GEMINI[verb], "google", f"/models/{{model}}:{verb}", model=model)


def _azure(path: str) -> Route | None:
    found = _AZURE_PATH.fullmatch(path)
    name = _OPENAI.get(found.group(2)) if found else None
    if found is None or name is None:
        return None
    return Route(name, "openai", found.group(2), model=found.group(1))


def _speech(path: str) -> Route | None:
    found = _SPEECH_PATH.fullmatch(path)
    return Route("elevenlabs_tts", "elevenlabs", found.group(1), "elevenlabs") if found else None


def _fixed() -> Iterator[tuple[str, Route]]:
    for base in OPENAI_BASES:
        yield from ((base + suffix, Route(name, "openai", suffix)) for suffix, name in _OPENAI.items())
    for base in ("/v1", "/v1/v1"):
        yield from ((base + suffix, Route(name, "anthropic", suffix)) for suffix, name in _ANTHROPIC.items())
    yield from ((path, Route(name, "cohere", path, "cohere")) for path, name in _COHERE.items())
    yield "/v1/rerank", Route("rerank", "rerank", "/rerank", "cohere")
    yield "/v1/fim/completions", Route("mistral_fim", "openai", "/fim/completions", "mistral")
    yield "/v1/speech-to-text", Route("elevenlabs_stt", "elevenlabs", "/speech-to-text", "elevenlabs")


_FIXED: Mapping[str, Route] = MappingProxyType(dict(_fixed()))
