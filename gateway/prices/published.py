"""Published prices: the data that ships with `genai-prices`, compiled to integers. Its updater is never started, so
there is no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import share
from gateway.core.price import Band, ModelPrice, Rates, Tariff, atto
from gateway.prices.book import BookContent, Clause, ClauseKind, PriceBook, PricedModel, ProviderPrices
from gateway.prices.own import read_operator_prices

if TYPE_CHECKING:
    from genai_prices import types as genai

# The providers of this gateway that genai-prices knows under another name; all others are looked up under their own.
# Hugging Face's router passes on its partners' prices without a margin, hence the last three.
GENAI_NAMES = {
    "xai": "x-ai",
    "googleOpenaiCompatible": "google",
    "google-vertex": "google",
    "moonshot": "moonshotai",
    "voyage": "voyageai",
    "hyperbolic": "huggingface_hyperbolic",
    "nebius": "huggingface_nebius",
    "sambanova": "huggingface_sambanova",
}

# Its names of the prices that a Usage has a count for, the first that exists counts. The others (document pages,
# video produced, citations) are for usage this gateway does not read.
_GENAI_RATES = {
    "input_mtok": ("input_mtok",),
    "cached_input_mtok": ("cache_read_mtok",),
    "cache_write_mtok": ("cache_write_mtok", "cache_write_5m_mtok"),
    "cache_write_1h_mtok": ("cache_write_1h_mtok",),
    "input_audio_mtok": ("input_audio_mtok",),
    "cached_audio_mtok": ("cache_audio_read_mtok",),
    "cached_image_mtok": ("cache_image_read_mtok",),
    "input_image_mtok": ("input_image_mtok",),
    "input_video_mtok": ("input_video_mtok",),
    "output_mtok": ("output_mtok",),
    "reasoning_mtok": ("output_reasoning_mtok",),
    "output_audio_mtok": ("output_audio_mtok",),
    "output_image_mtok": ("output_image_mtok",),
    "input_mchars": ("input_mchars",),
    "input_hours": ("input_audio_hours", "audio_hours"),
    "output_hours": ("output_audio_hours", "audio_hours"),
    "web_searches_kcount": ("web_searches_kcount",),
    "search_units_kcount": ("rerank_searches_kcount",),
    "file_searches_kcount": ("storage_searches_kcount",),
    "requests_kcount": ("requests_kcount",),
}
# What a provider may say of a call in its `service_tier`: the tier itself, its speed, or that it came from a batch.
_TIER_KEYS = ("service_tier", "speed", "processing")
# Groq bills a transcription as at least ten seconds; genai-prices has this in its code, not in its data.
_MINIMUM_INPUT_US = {("groq", "whisper-large-v3"): 10_000_000, ("groq", "whisper-large-v3-turbo"): 10_000_000}


def compile_book(now: datetime, path: Path | None = None) -> PriceBook:
    """The prices valid at `now` (with a time zone). `path`: the operator's prices, by default config/prices.toml.

    Takes some hundred milliseconds of CPU. Raise ConfigurationError naming the entry of the file that is not usable.
    """
    # Imported here: it costs 0.3 s and some 20 MB, and a book that was stored is read without it.
    from genai_prices.data import providers

    if now.tzinfo is None:
        raise ValueError("now needs a time zone")
    now = now.astimezone(UTC)
    operator = read_operator_prices(path or share.directory("config") / "prices.toml")
    content = BookContent(operator, {each.id: _provider(each, now) for each in providers}, GENAI_NAMES)
    changes = (change for each in providers for model in each.models for change in _changes(model, now))
    return PriceBook(content, min(changes, default=None))


def _provider(provider: genai.Provider, now: datetime) -> ProviderPrices:
    return ProviderPrices(
        tuple(PricedModel(_clause(model.match), _model(provider.id, model, now)) for model in provider.models),
        tuple(provider.fallback_model_providers or ()),
    )


def _clause(clause: genai.MatchLogic) -> Clause:
    (attribute, value), *_ = vars(clause).items()
    kind = msgspec.convert(attribute.rstrip("_"), ClauseKind)
    if isinstance(value, list):
        return Clause(kind, parts=tuple(_clause(part) for part in value))
    return Clause(kind, value if kind == "regex" else value.lower())


def _model(provider: str, model: genai.ModelInfo, now: datetime) -> ModelPrice:
    standard = _tariff(model.get_prices(now))
    tiers: dict[str, Tariff] = {}
    for variant in model.price_variants or ():
        (key, tier), *others = variant.when.items()
        if key in _TIER_KEYS and not others:
            tiers.setdefault(tier, _tariff(model.get_prices(now, {key: tier})))
    return ModelPrice(
        model=model.id,
        standard=standard,
        service_tiers={tier: tariff for tier, tariff in tiers.items() if tariff != standard},
        minimum_input_us=_MINIMUM_INPUT_US.get((provider, model.id), 0),
    )


def _tariff(prices: genai.ModelPrice) -> Tariff:
    """Its tiers are per rate; here a band holds all rates that apply above one threshold."""
    published = {name: value for name, value in _published(vars(prices)) if value is not None}
    starts = sorted({tier.start for value in published.values() for tier in getattr(value, "tiers", ())})
    base = Rates(**{name: atto(getattr(value, "base", value)) for name, value in published.items()})
    bands = (Band(start, Rates(**{n: atto(_above(v, start)) for n, v in published.items()})) for start in starts)
    return Tariff(base, tuple(bands))


def _published(prices: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, keys in _GENAI_RATES.items():
        yield name, next((prices[key] for key in keys if prices.get(key) is not None), None)


def _above(value: Any, start: int) -> Decimal:
    """The price of a rate, tiered or not, just above the threshold `start`."""
    price: Decimal = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if tier.start <= start:
            price = tier.price
    return price


def _changes(model: genai.ModelInfo, now: datetime) -> Iterator[datetime]:
    """The moments after `now` at which a price of the model starts or ends."""
    conditional: Iterable[Any] = model.prices if isinstance(model.prices, list) else ()
    for each in (*conditional, *(model.price_variants or ())):
        for value in vars(each.constraint).values() if each.constraint else ():
            change = _next(value, now)
            if change > now:
                yield change


def _next(value: date | time, now: datetime) -> datetime:
    if isinstance(value, time):
        zone = value.tzinfo or UTC
        today = datetime.combine(now.astimezone(zone).date(), value, zone)
        return (today if today > now else today + timedelta(days=1)).astimezone(UTC)
    return datetime.combine(value, time(), UTC)
