"""The price book: what every known model costs at every known provider, compiled once at start.

Two sources: the data that ships with `genai-prices` (its updater is never started, so no network) and the operator's
`config/prices.toml`, which wins. The book is plain data with its own match rules: stored under its `version`, it
prices any old request again, without this release of `genai-prices` or of the settings.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway import share
from gateway.core.price import RATE_NAMES, Band, Cost, ModelPrice, Rates, Tariff, atto
from gateway.core.usage import Usage
from gateway.errors import ConfigurationError

if TYPE_CHECKING:
    from genai_prices import types as genai

MEMOISED_NAMES_MAX = 8_192
MODEL_NAME_MAX_CHARACTERS = 512

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
_TIER_KEYS = ("service_tier", "speed")
# Groq bills a transcription as at least ten seconds; genai-prices has this in its code, not in its data.
_MINIMUM_INPUT_US = {("groq", "whisper-large-v3"): 10_000_000, ("groq", "whisper-large-v3-turbo"): 10_000_000}
_COMPACT_DATE = re.compile(r"-(20\d{2})(\d{2})(\d{2})(?=-|:|$)", re.ASCII)

ClauseKind = Literal["starts_with", "ends_with", "contains", "equals", "regex", "or", "and"]


class Clause(msgspec.Struct, frozen=True, array_like=True):
    """One match rule on a lower-case model name: a comparison with `text`, or a combination of `parts`."""

    kind: ClauseKind
    text: str = ""
    parts: tuple[Clause, ...] = ()

    def matches(self, name: str) -> bool:
        match self.kind:
            case "equals":
                return name == self.text
            case "starts_with":
                return name.startswith(self.text)
            case "ends_with":
                return name.endswith(self.text)
            case "contains":
                return self.text in name
            case "regex":
                return re.search(self.text, name) is not None
            case "or":
                return any(part.matches(name) for part in self.parts)
            case "and":
                return all(part.matches(name) for part in self.parts)


class PricedModel(msgspec.Struct, frozen=True):
    match: Clause
    price: ModelPrice


class ProviderPrices(msgspec.Struct, frozen=True):
    """The models of one provider in order of precedence, and the providers whose models it also offers."""

    models: tuple[PricedModel, ...]
    fallbacks: tuple[str, ...] = ()

    def find(self, name: str) -> ModelPrice | None:
        return next((model.price for model in self.models if model.match.matches(name)), None)


class BookContent(msgspec.Struct, frozen=True):
    """All that decides a price. `operator` is keyed by this gateway's provider names, `published` by genai-prices'."""

    operator: dict[str, ProviderPrices]
    published: dict[str, ProviderPrices]
    names: dict[str, str]


class PriceBook:
    """Immutable; `find` is memoised in a bounded LRU, also for models without a price. Safe to share by threads.

    `valid_until`: when a published price next starts or ends (deepseek's prices change with the hour); compile
    again then. None: no change is known. The same prices give the same `version`, whenever they were compiled.
    """

    def __init__(self, content: BookContent, valid_until: datetime | None = None) -> None:
        self._content = content
        self._json = msgspec.json.encode(content, order="deterministic")
        self.version = hashlib.sha256(self._json).hexdigest()[:16]
        self.valid_until = valid_until
        self._find = lru_cache(maxsize=MEMOISED_NAMES_MAX)(self._search)

    def find(self, provider: str, model: str) -> ModelPrice | None:
        """The price of `model` (any name the provider takes: dated, alias, fine-tune), None if unknown.

        A model that is published without a rate is known: all its usage comes out as `Cost.unpriced`.
        """
        if len(model) > MODEL_NAME_MAX_CHARACTERS:
            return None
        return self._find(provider, model)

    def cost(self, provider: str, model: str, usage: Usage, service_tier: str | None = None) -> Cost | None:
        """The cost of one request, its extra iterations on other models included. None: the model is unknown."""
        price = self.find(provider, model)
        if price is None:
            return None
        return price.cost(usage, service_tier, lambda other: self.find(provider, other))

    def to_json(self) -> bytes:
        return self._json

    @classmethod
    def from_json(cls, data: bytes) -> PriceBook:
        """The book that `to_json` stored. Raise ValueError if it is not one."""
        return cls(msgspec.json.decode(data, type=BookContent))

    def _search(self, provider: str, model: str) -> ModelPrice | None:
        name = model.lower().removeprefix("models/")
        return self._match(provider, name) or self._match(provider, _COMPACT_DATE.sub(r"-\1-\2-\3", name))

    def _match(self, provider: str, name: str) -> ModelPrice | None:
        own = self._content.operator.get(provider)
        published = self._content.published.get(self._content.names.get(provider, provider))
        for prices in (own, published):
            if prices is not None and (price := prices.find(name)) is not None:
                return price
        for fallback in published.fallbacks if published else ():
            price = self._content.published[fallback].find(name)
            if price is not None:
                # Another provider's service tiers are not on offer here.
                return msgspec.structs.replace(price, service_tiers={})
        return None


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


_Price = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,18})?$")]
_OperatorRates = msgspec.defstruct(
    "_OperatorRates",
    [(name, _Price | None, None) for name in RATE_NAMES],
    kw_only=True,
    forbid_unknown_fields=True,
)


class _OperatorBand(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    above_input_tokens: Annotated[int, Meta(ge=0)]
    rates: _OperatorRates  # type: ignore[valid-type]


class _OperatorPrice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of config/prices.toml."""

    provider: Annotated[str, Meta(min_length=1)]
    models: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    rates: _OperatorRates  # type: ignore[valid-type]
    bands: list[_OperatorBand] = []
    service_tiers: dict[str, _OperatorRates] = {}  # type: ignore[valid-type]
    minimum_input_us: Annotated[int, Meta(ge=0)] = 0
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None


class _OperatorFile(msgspec.Struct, forbid_unknown_fields=True):
    price: list[_OperatorPrice] = []


def read_operator_prices(path: Path) -> dict[str, ProviderPrices]:
    """The operator's prices by provider. Raise ConfigurationError naming the file and the entry at fault."""
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _OperatorFile).price
    except FileNotFoundError:
        raise ConfigurationError(f"the price file {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the price file {path} is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: a price is not usable: {error}") from None
    return _by_provider(path, entries)


def _by_provider(path: Path, entries: list[_OperatorPrice]) -> dict[str, ProviderPrices]:
    models: dict[str, list[PricedModel]] = {}
    for index, entry in enumerate(entries):
        known = models.setdefault(entry.provider, [])
        for pattern in entry.models:
            model = PricedModel(_pattern(pattern), _operator_price(path, index, entry, pattern))
            if any(other.match == model.match for other in known):
                raise ConfigurationError(f"{path}: price[{index}] repeats {pattern!r} of {entry.provider}")
            known.append(model)
    return {provider: ProviderPrices(tuple(priced)) for provider, priced in models.items()}


def _pattern(pattern: str) -> Clause:
    if pattern.endswith("*"):
        return Clause("starts_with", pattern[:-1].lower())
    return Clause("equals", pattern.lower())


def _operator_price(path: Path, index: int, entry: _OperatorPrice, pattern: str) -> ModelPrice:
    starts = [band.above_input_tokens for band in entry.bands]
    if starts != sorted(set(starts)):
        raise ConfigurationError(f"{path}: price[{index}].bands must have rising values of above_input_tokens")
    rates = _rates(entry.rates)
    if rates == Rates():
        raise ConfigurationError(f"{path}: price[{index}].rates has no rate")
    return ModelPrice(
        model=pattern,
        standard=Tariff(rates, tuple(Band(b.above_input_tokens, _rates(b.rates, rates)) for b in entry.bands)),
        service_tiers={tier: Tariff(_rates(each, rates)) for tier, each in entry.service_tiers.items()},
        minimum_input_us=entry.minimum_input_us,
        max_output_tokens=entry.max_output_tokens,
    )


def _rates(given: Any, base: Rates | None = None) -> Rates:
    """The rates given, and those of `base` for what is left out."""
    named = {name: atto(Decimal(text)) for name, text in msgspec.structs.asdict(given).items() if text is not None}
    return msgspec.structs.replace(base or Rates(), **named)
