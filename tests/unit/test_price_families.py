"""Every family of endpoints can be priced: the examples of config/prices.toml, through the readers of the wire."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.billing.pricing import Pricing
from gateway.core.usage import Usage
from gateway.prices import BookContent, PriceBook, read_operator_prices
from gateway.wire.formats import FORMATS

ROOT = Path(__file__).parents[2]
MORE = """
[[price]]
provider = "openai"
models = ["gpt-audio", "gpt-4o-transcribe"]
rates = { input_mtok = "2.5", input_audio_mtok = "32", output_mtok = "10", output_audio_mtok = "64" }

[[price]]
provider = "openai"
models = ["gpt-image-1"]
rates = { input_mtok = "5", input_image_mtok = "10", cached_input_mtok = "1.25", output_mtok = "40" }

[[price]]
provider = "together"
models = ["rank"]
rates = { input_mtok = "0.1" }

[[price]]
provider = "openai"
models = ["tts-1"]
rates = { input_mchars = "15" }
"""


def examples() -> str:
    """The entries that the file shows, without their comment signs."""
    text = (ROOT / "config" / "prices.toml").read_text(encoding="utf-8")
    blocks = re.findall(r"^#   \[\[price\]\]\n(?:#   .*\n)+", text, re.M)
    assert len(blocks) >= 9
    return "\n".join(re.sub(r"^#   ", "", block, flags=re.M) for block in blocks)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> PriceBook:
    path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(examples() + MORE, encoding="utf-8")
    return PriceBook(BookContent(read_operator_prices(path), {}, {}))


def test_the_example_with_all_options_means_what_it_says(book: PriceBook) -> None:
    price = book.find("kluster", "model-with-all-of-it")
    assert price is not None and book.find("deepinfra", "my-finetune-3") is not None
    usage = Usage(input_tokens=200_001, cached_input_tokens=200_000)
    assert price.cost(Usage(input_tokens=200_000)).total_nano == 200_000 * 230
    assert price.cost(usage).total_nano == 460 + 200_000 * 50
    assert price.cost(Usage(input_tokens=200_001), "batch").total_nano == 200_001 * 120
    assert set(price.service_tiers) == {"priority", "batch"}
    assert (price.minimum_input_us, price.max_output_tokens) == (10_000_000, 16_384)


def test_the_file_itself_prices_nothing_by_guess() -> None:
    assert read_operator_prices(ROOT / "config" / "prices.toml") == {}


def metered(format_name: str, provider: str, request: dict[str, Any], answer: Any) -> tuple[str, Usage]:
    """Model and usage of an exchange."""
    format_ = FORMATS[format_name]
    facts = format_.read_request(msgspec.json.encode(request), "/v1/x", "")
    meter = format_.meter(
        facts, provider=provider, content_type="application/json", hide_usage=False, limit_bytes=1 << 20
    )
    meter.feed(answer if isinstance(answer, bytes) else msgspec.json.encode(answer))
    meter.finish()
    usage = meter.reading().usage
    assert usage is not None and facts.model is not None
    return facts.model, usage


IMAGE = {"data": [{"b64_json": "AA"}]}
TWO_IMAGES = {"data": [{"b64_json": "AA"}, {"b64_json": "AA"}]}
AUDIO_USAGE = {
    "prompt_tokens": 1_000,
    "prompt_tokens_details": {"audio_tokens": 600},
    "completion_tokens": 100,
    "completion_tokens_details": {"audio_tokens": 80},
}
TRANSCRIBED = {"type": "tokens", "input_tokens": 500, "input_token_details": {"audio_tokens": 450}, "output_tokens": 40}
DRAWN = {"input_tokens": 300, "input_tokens_details": {"image_tokens": 200}, "output_tokens": 1_000}

# family: format, provider, what the request says beside its model, what the answer says, dollars
FAMILIES: dict[str, tuple[str, str, dict[str, Any], Any, str]] = {
    "image": ("images", "openai", {"model": "dall-e-3"}, IMAGE, "0.04"),
    "image in hd": ("images", "openai", {"model": "dall-e-3", "quality": "hd", "size": "1024x1024"}, IMAGE, "0.08"),
    "large ones in hd": (
        "images",
        "openai",
        {"model": "dall-e-3", "quality": "HD", "size": "1024x1792", "n": 2},
        TWO_IMAGES,
        "0.24",
    ),
    "hd that the provider chose": (
        "images",
        "openai",
        {"model": "dall-e-3", "quality": "auto"},
        IMAGE | {"quality": "hd", "size": "1024x1024"},
        "0.08",
    ),
    "large image": ("images", "openai", {"model": "dall-e-3", "size": "1024x1792"}, IMAGE, "0.08"),
    "image by tokens": ("images", "openai", {"model": "gpt-image-1"}, IMAGE | {"usage": DRAWN}, "0.0425"),
    "image by pixels": (
        "images",
        "nebius",
        {"model": "black-forest-labs/flux-schnell", "width": 512, "height": 512},
        IMAGE,
        "0.000786432",
    ),
    "image by pixels of no size": (
        "images",
        "nebius",
        {"model": "black-forest-labs/flux-schnell"},
        IMAGE,
        "0.003145728",
    ),
    "image by steps": (
        "hyperbolic_images",
        "hyperbolic",
        {"model_name": "SD2", "width": 1024, "height": 1024, "steps": 50},
        {"images": [{"image": "AA"}]},
        "0.02097152",
    ),
    "image by steps not asked for": (
        "hyperbolic_images",
        "hyperbolic",
        {"model_name": "SD2"},
        {"images": [{"image": "AA"}]},
        "0.01048576",
    ),
    "audio in a chat": (
        "openai_chat",
        "openai",
        {"model": "gpt-audio", "messages": []},
        {"choices": [], "usage": AUDIO_USAGE},
        "0.02552",
    ),
    "transcription by tokens": (
        "audio_transcriptions",
        "openai",
        {"model": "gpt-4o-transcribe"},
        {"text": "x", "usage": TRANSCRIBED},
        "0.014925",
    ),
    "transcription by time": (
        "elevenlabs_stt",
        "elevenlabs",
        {"model_id": "scribe_v1"},
        {"text": "x", "audio_duration_secs": 90.0},
        "0.01",
    ),
    "speech": ("elevenlabs_tts", "elevenlabs", {"model_id": "eleven_flash_v2_5", "text": "ab" * 50}, b"\0", "0.005"),
    "speech of others": ("audio_speech", "openai", {"model": "tts-1", "input": "ab" * 50}, b"\0", "0.0015"),
    "rerank by searches": (
        "rerank",
        "cohere",
        {"model": "rerank-v3.5", "query": "x", "documents": []},
        {"results": [], "meta": {"billed_units": {"search_units": 3}}},
        "0.006",
    ),
    "rerank by tokens": (
        "rerank",
        "together",
        {"model": "rank", "query": "x", "documents": []},
        {"results": [], "usage": {"prompt_tokens": 2_000, "completion_tokens": 0, "total_tokens": 2_000}},
        "0.0002",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_priced(book: PriceBook, family: str) -> None:
    """To the nano-dollar, with nothing left over; and what is held beforehand covers it."""
    format_name, provider, request, answer, usd = FAMILIES[family]
    model, usage = metered(format_name, provider, request, answer)
    cost = book.cost(provider, model, usage)
    assert cost is not None and cost.unpriced == ()
    assert cost.total_nano == int((Decimal(usd) * 10**9).to_integral_value(ROUND_HALF_UP)), usage
    if format_name in ("images", "hyperbolic_images"):
        pricing = Pricing(book, refuse_unknown=True, default_max_output_tokens=1)
        facts = FORMATS[format_name].read_request(msgspec.json.encode(request), "/v1/x", "")
        assert pricing.ceiling(provider, facts, 1_000, None) >= cost.total_nano


def test_a_form_asks_for_images_too(book: PriceBook) -> None:
    fields = {"model": "dall-e-3", "quality": "hd", "size": "1024x1024", "n": "2"}
    body = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (k.encode(), v.encode())
        for k, v in fields.items()
    )
    facts = FORMATS["images"].read_request(body + b"--b--\r\n", "/v1/images/edits", "")
    assert facts.choices == 2 and facts.at_most is not None
    assert (facts.at_most.image_quality, facts.at_most.image_size) == ("hd", "1024x1024")
    assert facts.at_most.image_pixels == 2 * 1024 * 1024


@pytest.mark.parametrize("size", ["1024\x001024", "x" * 40, 7, "1024x1024\n", ["1"], "ü"])
def test_words_that_could_not_be_stored_are_not_taken(size: Any) -> None:
    facts = FORMATS["images"].read_request(msgspec.json.encode({"model": "m", "size": size, "quality": size}), "", "")
    assert facts.at_most is not None
    assert (facts.at_most.image_size, facts.at_most.image_quality) == (None, None)


def test_no_number_of_images_is_too_large_to_be_stored() -> None:
    body = b'{"model":"m","n":999999999999,"width":99999,"height":99999,"steps":99999}'
    format_ = FORMATS["images"]
    facts = format_.read_request(body, "", "")
    meter = format_.meter(facts, provider="x", content_type="application/json", hide_usage=False, limit_bytes=1 << 16)
    meter.feed(b'{"data":[{"b64_json":"' + b"A" * (1 << 20) + b'"}]}')
    meter.finish()
    usage = meter.reading().usage
    assert usage is not None and usage.image_pixels == 99_999**3 < 2**53
    assert msgspec.json.decode(msgspec.json.encode(usage), type=Usage) == usage
