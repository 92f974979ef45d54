"""Requests in three dialects, and what becomes of them in another one."""

from __future__ import annotations

import json
from typing import Any

from gateway.wire.translate.translation import read_request, write_request
from gateway.wire.translate.values import To

PIXEL = "iVBORw0KGgo="
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPENAI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
ANTHROPIC: dict[str, Any] = OPENAI | {"max_tokens": 100}
GOOGLE: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
BODIES = {"openai": OPENAI, "anthropic": ANTHROPIC, "google": GOOGLE}


def translate(client: str, dialect: str, body: dict[str, Any], *, model: str = "m", **to: Any) -> dict[str, Any]:
    given = model if client == "google" or model != "m" else None
    ask = read_request(json.dumps(body).encode(), client, model=given)
    return json.loads(write_request(ask, dialect, To(**to)))


def tool(name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": WEATHER, **more}}


def part(value: dict[str, Any]) -> dict[str, Any]:
    return OPENAI | {"messages": [{"role": "user", "content": [value]}]}
