"""The price book against genai-prices itself: every recorded exchange, every published model, every boundary."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices.data import providers

from gateway.billing.merchant_prices import read_merchant_prices, unknown_names
from gateway.core.usage import ExtraUsage, Usage
from gateway.errors import ConfigurationError
from gateway.prices import (
    GENAI_NAMES,
    MEMOISED_NAMES_MAX,
    MerchantBook,
    PriceBook,
    compile_book,
    merchants_book,
    read_operator_prices,
)
from gateway.providers import load as load_providers

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings" / "http"
HUGGING_FACE = {"fireworks": "huggingface_fireworks-ai"}

# Usage fields and genai-prices' names for them.
SAME_COUNT = {
    "input_tokens": "input_tokens",
    "cached_input_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_tokens": "output_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
    "input_characters": "input_characters",
    "web_searches": "web_searches",
}
EXTRA_COUNTS = {
    "cache_write_1h": "cache_write_1h_tokens",
    "audio_input_tokens": "input_audio_tokens",
    "characters": "input_characters",
    "images": "images",
    "search_units": "search_units",
    "web_search_requests": "web_searches",
}


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return compile_book(NOW)


def usage_of(exchange: dict[str, Any]) -> Usage:
    expected, extra = exchange["expected"], exchange["expected_extra"] or {}
    counts = {name: count for name, count in expected.items() if name in Usage.__struct_fields__}
    counts |= {field: extra[name] for name, field in EXTRA_COUNTS.items() if extra.get(name)}
    if extra.get("audio_seconds"):
        counts["input_us"] = int(Decimal(str(extra["audio_seconds"])) * 1_000_000)
    return Usage(**counts)


def genai_nano(
    provider: str, model: str, usage: Usage, now: datetime = NOW, tier: str | None = None, key: str = "service_tier"
) -> int:
    """genai-prices' own answer, in Decimal, rounded half up. LookupError: unknown; ValueError: impossible usage."""
    counts: dict[str, Any] = {}
    for ours, theirs in SAME_COUNT.items():
        if getattr(usage, ours) is not None:
            counts[theirs] = getattr(usage, ours)
    if usage.input_us is not None:
        counts["input_audio_seconds"] = counts["audio_seconds"] = Decimal(usage.input_us) / 1_000_000
    calculation = genai_prices.calc_price(
        genai_prices.Usage(**counts),
        model,
        provider_id=GENAI_NAMES.get(provider, provider),
        genai_request_timestamp=now,
        price_context={key: tier} if tier else None,
    )
    return int((calculation.total_price * 10**9).to_integral_value(ROUND_HALF_UP))


def exchanges() -> Iterator[tuple[str, str, str, Usage]]:
    for path in sorted(RECORDINGS.glob("*.json")):
        exchange = json.loads(path.read_text(encoding="utf-8"))
        model = (exchange["expected"] or {}).get("model")
        if not model:
            continue
        provider = exchange["provider"]
        if exchange["host"] == "router.huggingface.co":
            provider = HUGGING_FACE.get(provider, f"huggingface_{provider}")
        yield path.name, provider, model, usage_of(exchange)


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not beside this checkout")
def test_every_recorded_exchange_costs_what_genai_prices_says(book: PriceBook) -> None:
    outcome: Counter[str] = Counter()
    for name, provider, model, usage in exchanges():
        cost = book.cost(provider, model, usage)
        try:
            expected_nano = genai_nano(provider, model.removeprefix("models/"), usage)
        except LookupError:
            assert cost is None, name
            outcome["unknown"] += 1
            continue
        except ValueError:
            assert cost is not None, name
            outcome["usage that genai-prices refuses"] += 1
            continue
        assert cost is not None and cost.total_nano == expected_nano, (name, provider, model, usage)
        assert cost.total_nano == cost.input_nano + cost.output_nano
        outcome["priced, with a part unpriced" if cost.unpriced else "priced"] += 1
    print(dict(outcome))
    assert outcome["priced"] > 400


USES = [
    Usage(input_tokens=1_234_567, cached_input_tokens=234_567, output_tokens=98_765, reasoning_tokens=4_321),
    Usage(
        input_tokens=777, cached_input_tokens=333, cache_write_tokens=222, cache_write_1h_tokens=111, output_tokens=5
    ),
    Usage(input_tokens=300_001, input_audio_tokens=0, output_tokens=1, web_searches=3),
    Usage(input_characters=1_999, input_us=0),
]


def test_every_published_model_costs_what_genai_prices_says(book: PriceBook) -> None:
    """All providers and models by their own ids, in uses that reach every band."""
    compared = 0
    for provider in providers:
        for model in provider.models:
            for usage in USES:
                try:
                    expected_nano = genai_nano(provider.id, model.id, usage)
                except LookupError:
                    assert book.find(provider.id, model.id) is None
                    continue
                cost = book.cost(provider.id, model.id, usage)
                assert cost is not None and cost.total_nano == expected_nano, (provider.id, model.id, usage)
                compared += 1
    assert compared > 8_800


def test_every_service_tier_costs_what_genai_prices_says(book: PriceBook) -> None:
    compared: Counter[str] = Counter()
    for provider in providers:
        for model in provider.models:
            for variant in model.price_variants or ():
                (key, tier), *_ = variant.when.items()
                if key not in ("service_tier", "processing"):
                    continue
                for usage in USES:
                    cost = book.cost(provider.id, model.id, usage, tier)
                    try:
                        expected_nano = genai_nano(provider.id, model.id, usage, tier=tier, key=key)
                    except LookupError:
                        assert cost is None
                        continue
                    assert cost is not None
                    assert cost.total_nano == expected_nano, (model.id, tier, usage)
                    compared[tier] += 1
    assert set(compared) >= {"flex", "priority", "fast", "batch"} and compared.total() > 800


def test_a_tier_without_a_price_of_its_own_is_told(book: PriceBook) -> None:
    usage = Usage(input_tokens=1_000, output_tokens=10)
    cost, standard = (book.cost("openai", "gpt-4.1", usage, tier) for tier in ("no-such-tier", None))
    assert cost is not None and standard is not None
    assert (cost.total_nano, cost.unpriced) == (standard.total_nano, ("service_tier",))


@pytest.mark.parametrize("input_tokens", [199_999, 200_000, 200_001])
@pytest.mark.parametrize("cached_share", [0, 1])
@pytest.mark.parametrize(("provider", "model"), [("google", "gemini-2.5-pro"), ("anthropic", "claude-sonnet-4-5")])
def test_long_context_boundary(
    book: PriceBook, provider: str, model: str, cached_share: int, input_tokens: int
) -> None:
    """Check 20, with real prices: the whole request changes its rates, and cached tokens count."""
    usage = Usage(input_tokens=input_tokens, cached_input_tokens=cached_share * (input_tokens - 1), output_tokens=1_000)
    cost = book.cost(provider, model, usage)
    assert cost is not None and cost.total_nano == genai_nano(provider, model, usage)
    long = input_tokens > 200_000
    output_usd_per_mtok = {"google": (10, 15), "anthropic": (15, Decimal("22.5"))}[provider][long]
    assert cost.output_nano == output_usd_per_mtok * 1_000_000


def test_cached_tokens_of_a_real_price(book: PriceBook) -> None:
    usage = Usage(
        input_tokens=6 + 159_217 + 2_745, cached_input_tokens=159_217, cache_write_tokens=2_745, output_tokens=100
    )
    cost = book.cost("anthropic", "claude-sonnet-4-5-20250929", usage)
    assert cost is not None and cost.unpriced == ()
    assert cost.total_nano == 6 * 3_000 + 159_217 * 300 + 2_745 * 3_750 + 100 * 15_000


@pytest.mark.parametrize(
    ("provider", "name", "model"),
    [
        ("openai", "gpt-4.1-2025-04-14", "gpt-4.1"),
        ("openai", "GPT-4.1", "gpt-4.1"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:org::id", "ft:gpt-4o-mini"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("xai", "grok-4", "grok-4-0709"),
        ("googleOpenaiCompatible", "gemini-2.5-pro", "gemini-2.5-pro"),
        ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("openai", "gpt-5.2-20251211", "gpt-5.2"),
        ("hyperbolic", "meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
    ],
)
def test_names_resolve(book: PriceBook, provider: str, name: str, model: str) -> None:
    price = book.find(provider, name)
    assert price is not None and price.model == model


def test_another_providers_model_has_no_service_tier_of_its_own(book: PriceBook) -> None:
    own, offered = book.find("openai", "gpt-4.1"), book.find("azure", "gpt-4.1")
    assert own is not None and offered is not None
    assert own.service_tiers and not offered.service_tiers


def test_groq_charges_at_least_ten_seconds(book: PriceBook) -> None:
    for input_us in (1, 9_999_999, 10_000_000, 11_000_000):
        cost = book.cost("groq", "whisper-large-v3", Usage(input_us=input_us))
        assert cost is not None
        assert cost.total_nano == genai_nano("groq", "whisper-large-v3", Usage(input_us=input_us))


def test_unknown_models_and_providers_have_no_price(book: PriceBook) -> None:
    assert book.find("openai", "no-such-model") is None
    assert book.find("no-such-provider", "gpt-4.1") is None
    assert book.find("openai", "gpt-4.1" + "-" * 1_000) is None
    assert book.cost("openai", "no-such-model", Usage(input_tokens=1)) is None


def test_a_model_published_without_rates_says_so(book: PriceBook) -> None:
    """A ":free" model, or one whose price is not known: it costs nothing here, and the usage is named."""
    cost = book.cost("openrouter", "deepseek-r1:free", Usage(input_tokens=5, output_tokens=7))
    assert cost is not None and (cost.total_nano, cost.unpriced) == (0, ("input_tokens", "output_tokens"))


def test_the_memory_of_names_is_bounded() -> None:
    book = PriceBook.from_json(b'{"operator":{},"published":{},"names":{}}')
    for number in range(MEMOISED_NAMES_MAX + 100):
        assert book.find("openai", f"model-{number}") is None
    assert book._found.cache_info().currsize == MEMOISED_NAMES_MAX


def test_an_extra_iteration_on_another_model_has_its_price(book: PriceBook) -> None:
    advisor = Usage(input_tokens=1_000, output_tokens=100)
    usage = Usage(
        input_tokens=0,
        extra=(ExtraUsage(kind="advisor_message", model="claude-opus-5", input_tokens=1_000, output_tokens=100),),
    )
    cost, alone = book.cost("anthropic", "claude-sonnet-4-5", usage), book.cost("anthropic", "claude-opus-5", advisor)
    assert cost is not None and cost == alone and cost.total_nano > 0


def test_a_stored_book_prices_the_same(book: PriceBook) -> None:
    """I7: a charge can be computed again from the version stored with it."""
    stored = PriceBook.from_json(book.to_json())
    assert stored.version == book.version and stored.to_json() == book.to_json()
    for provider, model in (("google", "gemini-2.5-pro"), ("azure", "gpt-4.1"), ("groq", "whisper-large-v3")):
        assert stored.find(provider, model) == book.find(provider, model)
    with pytest.raises(ValueError, match="operator"):
        PriceBook.from_json(b"{}")


def test_the_version_is_of_the_content(book: PriceBook, tmp_path: Path) -> None:
    assert len(book.version) == 16
    assert compile_book(NOW + timedelta(minutes=1)).version == book.version
    override = tmp_path / "prices.toml"
    override.write_text('[[price]]\nprovider = "chutes"\nmodels = ["m"]\nrates = { input_mtok = "1" }\n')
    assert compile_book(NOW, override).version != book.version


def test_prices_change_with_the_hour_and_the_date() -> None:
    """The book says how long it is valid, to the second, and the next one has the other price."""
    moment, versions = NOW, set()
    for _ in range(8):
        book = compile_book(moment)
        versions.add(book.version)
        assert book.valid_until is not None and moment < book.valid_until <= moment + timedelta(days=1)
        for at in (moment, book.valid_until - timedelta(seconds=1)):
            for model in ("deepseek-chat", "deepseek-flash"):
                cost = book.cost("deepseek", model, USES[0])
                assert cost is not None and cost.total_nano == genai_nano("deepseek", model, USES[0], at), at
        moment = book.valid_until
    assert len(versions) > 2


def test_the_moment_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        compile_book(NOW.replace(tzinfo=None))


def test_the_providers_without_published_prices(book: PriceBook) -> None:
    """docs/providers.md names them: nothing is filled in by guess, so their models are for config/prices.toml."""
    without = [row.name for row in load_providers() if next(book.priced(row.name), None) is None]
    text = (Path(__file__).parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
    told = text.partition("No prices are published for ")[2].partition(".")[0]
    assert told.replace(" and ", ", ").replace("\n", " ").split(", ") == without


MERCHANTS = """
[[price]]
provider = "openai"
models = ["gpt-4.1", "own-*"]
rates = { input_mtok = "7" }
"""


def test_a_merchants_prices_win(tmp_path: Path) -> None:
    """Merchant, then operator, then published; the version names both books, and from these it is the same again."""
    for name, text in (("prices.toml", OPERATOR), ("merchant.toml", MERCHANTS)):
        (tmp_path / name).write_text(text)
    base = compile_book(NOW, tmp_path / "prices.toml")
    own = read_merchant_prices(tmp_path / "merchant.toml")
    book = MerchantBook(base, own)
    assert book.version == f"{base.version}+{own.version}" and book.valid_until == base.valid_until

    again = MerchantBook(PriceBook.from_json(base.to_json()), merchants_book(own.stored()))
    assert again.version == book.version
    for name, source, usd in (
        ("gpt-4.1", "merchant", 7),
        ("gpt-4.1-2025-04-14", "published", 2),
        ("own-model", "merchant", 7),
        ("gpt-4.1-mini", "published", Decimal("0.4")),
    ):
        for each in (book, again):
            found, cost = each.locate("openai", name), each.cost("openai", name, Usage(input_tokens=1_000_000))
            assert found is not None and cost is not None and found.source == source
            assert cost.total_nano == usd * 10**9
    operators = book.locate("chutes", "org/tuned-7")
    assert operators is not None and operators.source == "operator"
    assert book.find("openai", "no-such-model") is None
    assert [name for name, found in book.priced("openai") if found.source == "merchant"] == ["gpt-4.1", "own-*"]


def test_misspelt_names_in_ones_own_prices_are_found(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(MERCHANTS + MERCHANTS.replace("openai", "opnai") + MERCHANTS.replace("openai", "api.example.com"))
    assert unknown_names(read_merchant_prices(path), load_providers()) == ["opnai"]
    assert unknown_names(compile_book(NOW), load_providers()) == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_operator_prices(tmp_path)


def test_what_was_stored_keeps_its_version(book: PriceBook) -> None:
    """Also under a release that would write the same prices in another way."""
    stored = b" " + book.to_json()
    again = PriceBook.from_json(stored)
    assert again.to_json() == stored and again.version == hashlib.sha256(stored).hexdigest()[:16]


def test_a_merchants_file_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "merchant.toml"
    path.write_text("")
    with pytest.raises(ConfigurationError, match="1 to 200"):
        read_merchant_prices(path)
    models = ", ".join(f'"m{number}"' for number in range(201))
    path.write_text(f'[[price]]\nprovider = "openai"\nmodels = [{models}]\nrates = {{ input_mtok = "1" }}\n')
    with pytest.raises(ConfigurationError, match="201 models"):
        read_merchant_prices(path)


OPERATOR = """
[[price]]
provider = "chutes"
models = ["Org/Model-A", "org/tuned-*"]
rates = { input_mtok = "0.25", output_mtok = "1", input_hours = "0.04" }
bands = [{ above_input_tokens = 100, rates = { input_mtok = "0.5" } }]
service_tiers = { priority = { output_mtok = "3" } }
minimum_input_us = 10000000

[[price]]
provider = "openai"
models = ["gpt-4.1"]
rates = { input_mtok = "1.5" }
"""


def test_the_operators_prices_win_and_add(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OPERATOR)
    book = compile_book(NOW, path)

    def nano(provider: str, model: str, usage: Usage, tier: str | None = None) -> int | None:
        cost = book.cost(provider, model, usage, tier)
        return cost and cost.total_nano

    assert nano("chutes", "org/model-a", Usage(input_tokens=100, output_tokens=1)) == 100 * 250 + 1_000
    assert nano("chutes", "ORG/tuned-7", Usage(input_tokens=101, output_tokens=1)) == 101 * 500 + 1_000
    assert nano("chutes", "org/model-a", Usage(output_tokens=1), "priority") == 3_000
    assert nano("chutes", "org/model-a", Usage(input_us=1)) == 111_111
    assert nano("chutes", "org/model-b", Usage(input_tokens=1)) is None
    assert nano("openai", "gpt-4.1", Usage(input_tokens=1, output_tokens=1)) == 1_500
    assert book.cost("openai", "gpt-4.1", Usage(output_tokens=1)).unpriced == ("output_tokens",)  # type: ignore[union-attr]
    assert nano("openai", "gpt-4.1-mini", Usage(input_tokens=1)) == 400
    assert PriceBook.from_json(book.to_json()).find("chutes", "org/model-a") == book.find("chutes", "org/model-a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[price]", "is not TOML"),
        ("[[price]]\nmodels = ['m']\nrates = {input_mtok = '1'}", r"`provider` - at `\$\.price\[0\]`"),
        ("[[price]]\nprovider = 'p'\nmodels = []\nrates = {input_mtok = '1'}", r"price\[0\]\.models"),
        ("[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {}", r"price\[0\]\.rates has no rate"),
        ("[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {input_mtok = 0.23}", r"price\[0\]\.rates\.input_mtok"),
        ("[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {input_mtok = '-1'}", r"price\[0\]\.rates\.input_mtok"),
        ("[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {input_mtok = '1e3'}", r"price\[0\]\.rates\.input_mtok"),
        ("[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {input_mtokens = '1'}", "input_mtokens"),
        (
            "[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {images_mpixels = '1'}",
            r"price\[0\] needs default_image_pixels",
        ),
        (
            "[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {images_step_mpixels = '1'}\ndefault_image_pixels = 9",
            r"price\[0\] needs default_image_steps",
        ),
        (
            "[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {images_kcount = '1'}\n"
            "image_classes = [{ quality = 'HD', rates = {images_kcount = '2'} }]",
            r"price\[0\]\.image_classes\[0\]\.quality",
        ),
        ("[[price]]\nprovider = 'p'\nmodels = ['m', 'M']\nrates = {input_mtok = '1'}", r"price\[0\] repeats 'M' of p"),
        (
            "[[price]]\nprovider = 'p'\nmodels = ['m']\nrates = {input_mtok = '1'}\n"
            "bands = [{above_input_tokens = 9, rates = {}}, {above_input_tokens = 9, rates = {}}]",
            r"price\[0\]\.bands must have rising",
        ),
    ],
)
def test_a_bad_price_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_operator_prices(path)


def test_a_missing_price_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml does not exist"):
        read_operator_prices(tmp_path / "nowhere.toml")
