"""The cost of a recorded exchange, worked out beside the gateway: the recording's figures, genai-prices, Decimal."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import genai_prices
from recorded_exchanges import Recorded

from gateway.local.fake.replay import ENCODE_HEADER, recorded_reply
from gateway.prices import GENAI_NAMES

# What the recordings call a figure, and what genai-prices calls it.
EXPECTED = {
    "input_tokens": "input_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}
EXTRA = {
    "cache_write_1h": "cache_write_1h_tokens",
    "audio_input_tokens": "input_audio_tokens",
    "characters": "input_characters",
    "web_search_requests": "web_searches",
}
TIERS = ("fast", "flex", "priority")
NANO = 10**9


def cost_nano(one: Recorded, provider: str, row: dict[str, Any]) -> int | None:
    """Nano-dollars, rounded once; None where genai-prices knows no price or refuses the figures (more reasoning than
    output). The row tells only the model that was priced and the tier."""
    tier = row["service_tier"] if row["service_tier"] in TIERS else None
    try:
        total = sum(
            (_price(provider, model or row["model"], counts, tier) for model, counts in _parts(one)), start=Decimal(0)
        )
    except (LookupError, ValueError):
        return None
    return int((total * NANO).to_integral_value(ROUND_HALF_UP))


def _price(provider: str, model: str, counts: dict[str, Any], tier: str | None) -> Decimal:
    calculation = genai_prices.calc_price(
        genai_prices.Usage(**counts),
        model.removeprefix("models/"),
        provider_id=GENAI_NAMES.get(provider, provider),
        price_context={"service_tier": tier} if tier else None,
    )
    return Decimal(calculation.total_price)


def _tool_calls(one: Recorded) -> dict[str, int]:
    """OpenAI and xAI bill what their own tools did by the call; the recordings' figures leave it out."""
    text = _text(one)
    if one.exchange.stream:
        events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and "{" in line]
        response = next((event["response"] for event in reversed(events) if "response" in event), {})
    else:
        response = json.loads(text)
    kinds = Counter(item.get("type") for item in response.get("output") or ())
    xai = (response.get("usage") or {}).get("num_server_side_tools_used") or 0
    return {"web_searches": kinds["web_search_call"] or xai, "storage_searches": kinds["file_search_call"]}


def _grounding(one: Recorded) -> dict[str, int]:
    """Google bills a grounded answer by the searches, before Gemini 3 once."""
    lists = re.findall(r'"webSearchQueries"\s*:\s*(\[[^\]]*\])', _text(one))
    queries = max((len(json.loads(found)) for found in lists), default=0)
    model = one.record["expected"]["model"] or ""
    return {"web_searches": 1 if queries and model.startswith("gemini-2") else queries} if queries else {}


def _text(one: Recorded) -> str:
    return b"".join(recorded_reply(one.exchange, {ENCODE_HEADER: "identity"})[1]).decode()


def _parts(one: Recorded) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The call's own figures, and those of the iterations that its totals leave out."""
    expected, extra = one.record["expected"], one.record["expected_extra"] or {}
    counts = {theirs: expected[name] for name, theirs in EXPECTED.items() if expected[name] is not None}
    counts |= {theirs: extra[name] for name, theirs in EXTRA.items() if extra.get(name) is not None}
    if extra.get("audio_seconds"):
        counts["input_audio_seconds"] = counts["audio_seconds"] = Decimal(str(extra["audio_seconds"]))
    if one.record["endpoint"] == "responses":
        counts |= _tool_calls(one)
    if one.record["endpoint"] in ("gemini_generate", "gemini_stream"):
        counts |= _grounding(one)
    if one.record["endpoint"] == "images_generations":
        outputs = (one.record["raw_usage"] or {}).get("output_tokens_details") or {}
        counts |= {"output_image_tokens": outputs["image_tokens"]} if "image_tokens" in outputs else {}
    yield None, counts
    for iteration in extra.get("extra_iterations", ()):
        read, written = iteration["cache_read_input_tokens"], iteration["cache_creation_input_tokens"]
        yield (
            iteration["model"],
            {
                "input_tokens": iteration["input_tokens"] + read + written,
                "cache_read_tokens": read,
                "cache_write_tokens": written,
                "output_tokens": iteration["output_tokens"],
            },
        )
