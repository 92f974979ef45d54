"""The gateway's own paths in the OpenAPI document, by hand: what they take and answer is the provider's."""

from __future__ import annotations

from typing import Any, NamedTuple

Json = dict[str, Any]

ALL = ("GET", "POST", "PUT", "PATCH", "DELETE")
_DIALECTS = (
    "Answered by the provider that has the model, in the format of the request. `model` may be `<provider>/<model>`."
)
_STATUSES = {
    "400": "The request cannot be priced or passed on.",
    "401": "No usable credential.",
    "402": "`insufficient_balance` or `balance_reserved`: the balance does not cover what the call can cost.",
    "403": "The credential may not make this call.",
    "404": "The customer or meter is not known.",
    "429": "Too many calls.",
    "502": "The provider was not reached.",
    "503": "The ledger is away; nothing was sent.",
    "504": "The provider did not answer in time.",
}


class Path(NamedTuple):
    """One row: the path, its methods, what it is. `parameters` beyond those in the path."""

    path: str
    methods: tuple[str, ...]
    summary: str
    description: str
    parameters: tuple[Json, ...] = ()


_TARGET: Json = {
    "name": "u",
    "in": "query",
    "required": True,
    "description": "The provider's https URL, percent-encoded or not.",
    "schema": {"type": "string"},
}
_FORWARD = (
    "The body goes to the provider byte for byte and the answer comes back so, with the header `x-lava-request-id`. The"
    " credential is a forward token, a secret key or a spend key. Metadata: header `x-lava-metadata`."
)

PATHS = (
    Path("/v1/forward", ALL, "Call a provider", _FORWARD, (_TARGET,)),
    Path(
        "/v1/rewrite/{format}/{url}",
        ("POST",),
        "Call a provider in another one's format",
        "`format` (openai, anthropic or google) is what is sent and answered; the provider's is told from its URL.",
    ),
    Path("/v1/chat/completions", ("POST",), "OpenAI's chat completions", _DIALECTS),
    Path("/v1/completions", ("POST",), "OpenAI's completions", _DIALECTS),
    Path("/v1/responses", ("POST",), "OpenAI's responses", _DIALECTS),
    Path("/v1/embeddings", ("POST",), "OpenAI's embeddings", _DIALECTS),
    Path("/v1/messages", ("POST",), "Anthropic's messages", _DIALECTS),
    Path("/v1beta/models/{model}:generateContent", ("POST",), "Google's generateContent", _DIALECTS),
    Path("/v1beta/models/{model}:streamGenerateContent", ("POST",), "Google's streamGenerateContent", _DIALECTS),
)
"""Other endpoints and bases of the vendors' clients: docs/clients.md."""


def gateway_paths() -> Json:
    """The path items of the document."""
    return {row.path: {method.lower(): _shown(row, method) for method in row.methods} for row in PATHS}


def _shown(row: Path, method: str) -> Json:
    named = [part.split("}")[0] for part in row.path.split("{")[1:]]
    schema = {"schema": {"type": "string"}}
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    shown: Json = {
        "summary": row.summary,
        "description": row.description,
        "tags": ["Gateway"],
        "parameters": [
            *({"name": name, "in": "path", "required": True, **schema} for name in named),
            *row.parameters,
        ],
        "responses": {
            "default": {"description": "The provider's status, headers and body."},
            **{status: {"description": why, **error} for status, why in _STATUSES.items()},
        },
    }
    if method not in ("GET", "DELETE"):
        shown["requestBody"] = {"content": {"*/*": {"schema": {}}}, "description": "The provider's own request."}
    return shown
