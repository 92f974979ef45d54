"""Small pieces that several integration tests share."""

from __future__ import annotations

import json
from typing import Any

CHAT = "https://api.openai.com/v1/chat/completions"


def chat(text: str = "hello there", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **more}


def events_of(body: bytes) -> list[Any]:
    """The data of each SSE event, decoded where it is JSON."""
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
