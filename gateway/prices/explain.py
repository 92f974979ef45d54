"""A price explained: as data, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC
from decimal import Decimal
from typing import Any

import msgspec

from gateway.core.money import format_nano
from gateway.core.price import RATE_NAMES, ModelPrice, PriceLine, Rates, Tariff, line_nano, paid_rate
from gateway.core.usage import Usage
from gateway.prices.book import Book, Found

LABELS = {
    "input_mtok": "input tokens",
    "cached_input_mtok": "cached input tokens",
    "cache_write_mtok": "tokens written to a cache",
    "cache_write_1h_mtok": "tokens written to a cache for an hour",
    "input_audio_mtok": "audio input tokens",
    "cached_audio_mtok": "cached audio tokens",
    "cached_image_mtok": "cached image tokens",
    "input_image_mtok": "image input tokens",
    "input_video_mtok": "video input tokens",
    "output_mtok": "output tokens",
    "reasoning_mtok": "reasoning tokens",
    "output_audio_mtok": "audio output tokens",
    "output_image_mtok": "image output tokens",
    "input_mchars": "input characters",
    "output_mchars": "output characters",
    "input_mbytes": "input bytes",
    "output_mbytes": "output bytes",
    "input_hours": "time of sound in",
    "output_hours": "time of sound out, or of an answer",
    "images_kcount": "images",
    "images_mpixels": "pixels of images",
    "images_step_mpixels": "pixels of images times steps",
    "web_searches_kcount": "web searches",
    "search_units_kcount": "search units",
    "file_searches_kcount": "file searches",
    "requests_kcount": "requests",
}
UNITS = {
    "mtok": "a million",
    "mchars": "a million",
    "mbytes": "a million",
    "mpixels": "a million",
    "hours": "an hour",
    "kcount": "a thousand",
}
SOURCES = {
    "merchant": "the merchant's own prices",
    "operator": "the operator's prices (config/prices.toml)",
    "published": "published prices (genai-prices)",
}
Data = dict[str, Any]


def usd(atto: int) -> str:
    """Dollars, exact and without an exponent."""
    return f"{Decimal(atto).scaleb(-18).normalize():f}"


def explained(book: Book, provider: str, model: str, found: Found) -> Data:
    """All of a price. Rates are dollars, as text, by the names of config/prices.toml."""
    price = found.price
    until = book.valid_until
    return {
        "provider": provider,
        "model": model,
        "priced_as": price.model,
        "source": found.source,
        "published_by": found.provider if found.source == "published" else None,
        "version": book.version,
        "valid_until": until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if until else None,
        **_tariff(price.standard),
        "service_tiers": {name: _tariff(tariff) for name, tariff in sorted(price.service_tiers.items())},
        "image_classes": [
            {"quality": each.quality, "size": each.size, "rates": rates_of(each.rates)} for each in price.image_classes
        ],
        "charged_as": charged_as(price.standard.rates),
        "minimum_input_us": price.minimum_input_us,
        "max_output_tokens": price.max_output_tokens,
        "default_image_pixels": price.default_image_pixels,
        "default_image_steps": price.default_image_steps,
    }


def _tariff(tariff: Tariff) -> Data:
    bands = [{"above_input_tokens": b.above_input_tokens, "rates": rates_of(b.rates)} for b in tariff.bands]
    return {"rates": rates_of(tariff.rates), "bands": bands}


def rates_of(rates: Rates) -> dict[str, str]:
    return {name: usd(rate) for name in RATE_NAMES if (rate := getattr(rates, name)) is not None}


def charged_as(rates: Rates) -> dict[str, str]:
    """The classes without a rate of their own that pay another's."""
    paid = ((name, paid_rate(rates, name)) for name in RATE_NAMES)
    return {name: by for name, by in paid if by is not None and by != name}


def example(price: ModelPrice, usage: Usage, service_tier: str | None) -> Data:
    """What a usage costs, by its classes."""
    cost = price.cost(usage, service_tier)
    lines, _ = price.lines(usage, service_tier)
    return {
        "usage": {name: value for name, value in msgspec.structs.asdict(usage).items() if value not in (None, ())},
        "service_tier": service_tier,
        "lines": [_line(line) for line in lines],
        "input_cost": format_nano(cost.input_nano),
        "output_cost": format_nano(cost.output_nano),
        "total_cost": format_nano(cost.total_nano),
        "unpriced": list(cost.unpriced),
    }


def _line(line: PriceLine) -> Data:
    exact = line_nano(line)
    nano = Decimal(exact.numerator) / exact.denominator
    return {
        "class": line.rate_name,
        "amount": line.amount,
        "paid_as": line.paid_as,
        "rate": usd(line.rate) if line.paid_as else None,
        "cost": f"{nano.scaleb(-9).quantize(Decimal(10) ** -15).normalize():f}" if line.paid_as else None,
    }


def as_text(data: Data) -> str:
    """What `explained` (and `example`) found, for reading."""
    return "\n".join(_text(data)) + "\n"


def _text(data: Data) -> Iterator[str]:
    yield f"{data['provider']} {data['model']}"
    yield ""
    by = f", as {data['published_by']} {data['priced_as']}" if data["published_by"] else f", as {data['priced_as']}"
    yield f"source       {SOURCES[data['source']]}{by}"
    yield f"version      {data['version']}"
    if "valid_until" in data:
        yield f"valid until  {data['valid_until'] or 'no change of any price is known'}"
    yield ""
    yield from _tariff_text("USD", data, {})
    for name, tariff in data["service_tiers"].items():
        yield from _tariff_text(f"service tier {name}", tariff, data["rates"])
    for each in data["image_classes"]:
        kind = " ".join(word for word in (each["quality"], each["size"]) if word) or "any"
        yield from _rates_text(f"images: {kind}", each["rates"], data["rates"])
    yield from _notes(data)
    if "example" in data:
        yield from _example_text(data["example"])


def _tariff_text(title: str, tariff: Data, base: Mapping[str, str]) -> Iterator[str]:
    yield from _rates_text(title, tariff["rates"], base)
    for band in tariff["bands"]:
        above = f"{title}, prompts above {band['above_input_tokens']:,} tokens, cached ones included"
        yield from _rates_text(above, band["rates"], tariff["rates"])


def _rates_text(title: str, rates: Mapping[str, str], base: Mapping[str, str]) -> Iterator[str]:
    """The rates that are not those of `base`."""
    yield f"{title}:"
    differing = {name: rate for name, rate in rates.items() if base.get(name) != rate}
    for name, rate in differing.items():
        yield f"  {LABELS[name]:<38} {rate:>14}  {UNITS[name.rpartition('_')[2]]}"
    if not differing:
        yield "  no price of its own: its usage is named as unpriced" if not rates else "  as above"
    yield ""


def _notes(data: Data) -> Iterator[str]:
    notes = [
        f"as {LABELS[by]}: {', '.join(LABELS[name] for name, other in data['charged_as'].items() if other == by)}"
        for by in dict.fromkeys(data["charged_as"].values())
    ]
    if data["minimum_input_us"]:
        notes.append(f"sound is charged as at least {data['minimum_input_us'] / 1_000_000:g} seconds")
    if data["max_output_tokens"]:
        notes.append(f"produces at most {data['max_output_tokens']:,} tokens")
    if data["default_image_pixels"]:
        notes.append(f"an image has {data['default_image_pixels']:,} pixels unless its size is asked for")
    if data["default_image_steps"]:
        notes.append(f"an image has {data['default_image_steps']:,} steps unless others are asked for")
    yield from notes


def _example_text(found: Data) -> Iterator[str]:
    yield ""
    yield "example" + (f", service tier {found['service_tier']}" if found["service_tier"] else "") + ":"
    for line in found["lines"]:
        label, amount = LABELS[line["class"]], f"{line['amount']:,}"
        if line["class"].endswith("_hours"):
            amount = f"{Decimal(line['amount']) / 1_000_000:f} s"
        unit = UNITS[(line["paid_as"] or line["class"]).rpartition("_")[2]]
        price = f"at {line['rate']} {unit} = {line['cost']}" if line["paid_as"] else "without a price"
        yield f"  {label:<38} {amount:>14}  {price}"
    yield f"  total {found['total_cost']} USD (input {found['input_cost']}, output {found['output_cost']})"
    if found["unpriced"]:
        yield f"  not in it, for want of a price: {', '.join(found['unpriced'])}"
