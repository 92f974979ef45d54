"""Prices of one's own, of the operator or of a merchant: a file of TOML, explained in config/prices.toml."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.core.price import RATE_NAMES, Band, ImageClass, ModelPrice, Rates, Tariff, atto
from gateway.errors import ConfigurationError
from gateway.prices.book import Clause, PricedModel, ProviderPrices

_Price = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,18})?$")]
_Word = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9:._-]{0,31}$")]
_Pixels = Annotated[int, Meta(ge=0, le=1_000_000_000)]
_Steps = Annotated[int, Meta(ge=0, le=99_999)]
_OperatorRates = msgspec.defstruct(
    "_OperatorRates",
    [(name, _Price | None, None) for name in RATE_NAMES],
    kw_only=True,
    forbid_unknown_fields=True,
)


class _OperatorBand(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    above_input_tokens: Annotated[int, Meta(ge=0)]
    rates: _OperatorRates  # type: ignore[valid-type]


class _OperatorImages(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    rates: _OperatorRates  # type: ignore[valid-type]
    quality: _Word | None = None
    size: _Word | None = None


class _OperatorPrice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One entry of config/prices.toml."""

    provider: Annotated[str, Meta(min_length=1)]
    models: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    rates: _OperatorRates  # type: ignore[valid-type]
    bands: list[_OperatorBand] = []
    service_tiers: dict[str, _OperatorRates] = {}  # type: ignore[valid-type]
    minimum_input_us: Annotated[int, Meta(ge=0)] = 0
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    image_classes: list[_OperatorImages] = []
    default_image_pixels: _Pixels = 0
    default_image_steps: _Steps = 0

    def all_rates(self) -> list[Any]:
        """Every set of rates of this entry."""
        partial: tuple[Any, ...] = (*self.bands, *self.image_classes)
        return [self.rates, *self.service_tiers.values(), *(each.rates for each in partial)]


class _OperatorFile(msgspec.Struct, forbid_unknown_fields=True):
    price: list[_OperatorPrice] = []


def read_operator_prices(path: Path) -> dict[str, ProviderPrices]:
    """The operator's prices by provider. Raise ConfigurationError naming the file and the entry at fault."""
    try:
        entries = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _OperatorFile).price
    except FileNotFoundError:
        raise ConfigurationError(f"the price file {path} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"the price file {path} cannot be read: {error.strerror}") from None
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
    _check_images(path, index, entry)
    return ModelPrice(
        model=pattern,
        standard=Tariff(rates, tuple(Band(b.above_input_tokens, _rates(b.rates, rates)) for b in entry.bands)),
        service_tiers={tier: Tariff(_rates(each, rates)) for tier, each in entry.service_tiers.items()},
        minimum_input_us=entry.minimum_input_us,
        max_output_tokens=entry.max_output_tokens,
        image_classes=tuple(ImageClass(_rates(i.rates, rates), i.quality, i.size) for i in entry.image_classes),
        default_image_pixels=entry.default_image_pixels,
        default_image_steps=entry.default_image_steps,
    )


def _check_images(path: Path, index: int, entry: _OperatorPrice) -> None:
    """A size or a number of steps that a request leaves out must not make its images free."""
    by_pixel = any(each.images_mpixels or each.images_step_mpixels for each in entry.all_rates())
    by_step = any(each.images_step_mpixels for each in entry.all_rates())
    for needed, name in ((by_pixel, "default_image_pixels"), (by_step, "default_image_steps")):
        if needed and not getattr(entry, name):
            raise ConfigurationError(f"{path}: price[{index}] needs {name}: what images have that no request asks for")


def _rates(given: Any, base: Rates | None = None) -> Rates:
    """The rates given, and those of `base` for what is left out."""
    named = {name: atto(Decimal(text)) for name, text in msgspec.structs.asdict(given).items() if text is not None}
    return msgspec.structs.replace(base or Rates(), **named)
