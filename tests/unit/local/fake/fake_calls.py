"""The requests that the tests of the fake provider make."""

from __future__ import annotations

import json
from typing import Any

CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-flash"


def contents(text: str, **config: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], "generationConfig": config}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(text: str = "What is a meter?", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": user(text), **fields}


def events(body: bytes) -> list[dict[str, Any]]:
    """The JSON of each data line."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


async def post(http, provider, path: str, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
    async with http.post(provider.url + path, json=body, headers=headers) as response:
        return response.status, await response.read()
