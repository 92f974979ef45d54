"""The most that a prompt can be in tokens, where the size of the body does not bound it.

No token of text is shorter than a byte. But an image may be a URL of forty bytes, a file or the turns before only an
id, and a tool may bring text of its own. `RequestFacts.at_most` says what such a call can use, so that enough is held
for it; base64 in the body, which is no text, is not counted as if it were.

`wire/shapes.py` tells cheaply that a prompt is text alone, as nearly all are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from gateway.core.usage import Usage
from gateway.wire.image_tokens import Rules
from gateway.wire.media import CONTEXT_TOKENS, Media, media_at_most

SEARCHES_MAX = 20
"""Of one call: what models make where the request sets no limit is around ten."""

HIDDEN_PROMPT_TOKENS = 2_048
_BARE = re.compile(
    r"gpt-[345]|gpt-audio|chatgpt|o[1-9](?![0-9a-z])|claude-|gemini-|command-"
    r"|(?:mistral|ministral|magistral|codestral|devstral|pixtral|open-mi)|deepseek-"
)


@lru_cache(maxsize=1_024)
def hidden_prompt_tokens(model: str) -> int:
    """What a vendor may put before the caller's prompt, and bill: 680 tokens before each to grok-4, 250 at Xiaomi, 400
    of a template for tools, 1,600 seen at most. The models named here are known to add none."""
    return 0 if _BARE.match(model) else HIDDEN_PROMPT_TOKENS


def prompt_at_most(
    body: bytes, rules: Rules, model: str, *, media: Iterable[Media] | None, elsewhere: bool, tool_tokens: int = 0
) -> Usage | None:
    """At most so much is a prompt. None: the body's size is a bound.

    `media`: what it shows or names of them, if it may. `elsewhere`: a part of it is not in the body at all (earlier
    turns, what a search finds), so only the model's window bounds it. `tool_tokens`: what the vendor adds to explain
    tools.
    """
    if media is None and not elsewhere and not tool_tokens:
        return None
    added = tool_tokens + (CONTEXT_TOKENS if elsewhere else 0)
    if media is None:
        return Usage(input_tokens=len(body) + added)
    most, data_bytes = media_at_most(media, rules, model)
    return Usage(
        input_tokens=len(body) - data_bytes + added + (most.input_tokens or 0),
        input_audio_tokens=most.input_audio_tokens,
        input_image_tokens=most.input_image_tokens,
    )
