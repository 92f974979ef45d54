"""What a provider charges for one call: integer rates, and the cost of a `Usage` under them.

A rate is an integer number of atto-dollars (1e-18 USD) for the unit that its name ends with: a million tokens
(`_mtok`), a million characters (`_mchars`) or bytes (`_mbytes`), an hour (`_hours`), a million pixels (`_mpixels`) or
a thousand of something counted (`_kcount`).
These are the units price lists are published in, so every published price is an exact integer here, while
pico-dollars a token would round real ones (0.0833 USD a million tokens, 0.04 USD an hour of audio). A sum is
kept exact over the common denominator of these units and rounded once, half up, to nano-dollars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import NamedTuple

import msgspec
from msgspec.structs import astuple

from gateway.core.money import divide_half_up
from gateway.core.usage import ExtraUsage, Usage

ATTO = 10**18
_ATTO_PER_NANO = 10**9
_HOUR_US = 3_600_000_000
_UNIT_SIZES = {"hours": _HOUR_US, "kcount": 1_000} | dict.fromkeys(("mtok", "mchars", "mbytes", "mpixels"), 1_000_000)
_DENOMINATOR = _HOUR_US * _ATTO_PER_NANO


class Rates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Atto-dollars per unit; the unit stands last in the name. None: the provider publishes no such price.

    A token class without a price of its own is charged as the class it is a part of (`_CHARGED_AS`).
    """

    input_mtok: int | None = None
    cached_input_mtok: int | None = None
    cache_write_mtok: int | None = None
    cache_write_1h_mtok: int | None = None
    input_audio_mtok: int | None = None
    cached_audio_mtok: int | None = None
    cached_image_mtok: int | None = None
    input_image_mtok: int | None = None
    input_video_mtok: int | None = None
    output_mtok: int | None = None
    reasoning_mtok: int | None = None
    output_audio_mtok: int | None = None
    output_image_mtok: int | None = None
    input_mchars: int | None = None
    output_mchars: int | None = None
    input_mbytes: int | None = None
    output_mbytes: int | None = None
    input_hours: int | None = None
    output_hours: int | None = None
    images_kcount: int | None = None
    images_mpixels: int | None = None
    images_step_mpixels: int | None = None
    web_searches_kcount: int | None = None
    search_units_kcount: int | None = None
    file_searches_kcount: int | None = None
    requests_kcount: int | None = None


_UNPRICED = Rates()
RATE_NAMES: tuple[str, ...] = Rates.__struct_fields__
_WEIGHTS = {name: _HOUR_US // _UNIT_SIZES[name.rpartition("_")[2]] for name in RATE_NAMES}

# Where both parents of cached audio or images have a price, the dearer one (audio, images) is taken.
_CHARGED_AS: dict[str, tuple[str, ...]] = {
    "cached_input_mtok": ("input_mtok",),
    "cache_write_mtok": ("input_mtok",),
    "cache_write_1h_mtok": ("cache_write_mtok", "input_mtok"),
    "input_audio_mtok": ("input_mtok",),
    "cached_audio_mtok": ("input_audio_mtok", "cached_input_mtok", "input_mtok"),
    "cached_image_mtok": ("input_image_mtok", "cached_input_mtok", "input_mtok"),
    "input_image_mtok": ("input_mtok",),
    "input_video_mtok": ("input_mtok",),
    "reasoning_mtok": ("output_mtok",),
    "output_audio_mtok": ("output_mtok",),
    "output_image_mtok": ("output_mtok",),
}

# Tier names that say "the ordinary price" in the vendors' requests and responses.
_STANDARD_TIERS = frozenset({None, "", "standard", "default", "auto", "on_demand", "standard_only"})

_FEES = (
    ("web_searches", "web_searches_kcount"),
    ("search_units", "search_units_kcount"),
    ("file_searches", "file_searches_kcount"),
)

_INPUT_FIELD, _OUTPUT_FIELD = (Usage.__struct_fields__.index(name) for name in ("input_tokens", "output_tokens"))

Counts = dict[str, int]
"""Units used, by the name of the rate that prices them: tokens, characters, microseconds, pixels or pieces."""
Measure = tuple[str, str, int | None]
"""What is charged beside tokens: the field of the usage, the rate that prices it, how much."""


class Band(msgspec.Struct, frozen=True):
    """The rates of a request whose prompt, cached tokens included, has more than `above_input_tokens` tokens."""

    above_input_tokens: int
    rates: Rates


class Tariff(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rates, and the long-context bands in ascending order. A band prices the whole request, not the excess."""

    rates: Rates
    bands: tuple[Band, ...] = ()

    def rates_for(self, input_tokens: int) -> Rates:
        rates = self.rates
        for band in self.bands:
            if input_tokens > band.above_input_tokens:
                rates = band.rates
        return rates


class ImageClass(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rates of images of one quality and size, as the request words them (lower case); None: any."""

    rates: Rates
    quality: str | None = None
    size: str | None = None

    def covers(self, usage: Usage) -> bool:
        return self.quality in (None, usage.image_quality) and self.size in (None, usage.image_size)


class Cost(msgspec.Struct, frozen=True):
    """Nano-dollars. `total_nano` is authoritative and is `input_nano` + `output_nano`.

    Fees for the request, for searches and for reranking are part of the input, those for images of the output.
    `unpriced` names the fields of the usage that no rate covers: the total does not contain them.
    """

    input_nano: int
    output_nano: int
    total_nano: int
    unpriced: tuple[str, ...] = ()


class PriceLine(NamedTuple):
    """One class of a usage: how much of it, and the atto-dollars for the unit of the rate that it pays. `paid_as`: the
    name of that rate, which may be that of the class it is a part of; None without any."""

    rate_name: str
    amount: int
    paid_as: str | None
    rate: int


class _Charge(NamedTuple):
    """Exact numerators over `_DENOMINATOR` nano-dollars."""

    input: int
    output: int
    unpriced: tuple[str, ...]


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one model costs at one provider.

    `service_tiers` holds the tariffs of the tiers that have one of their own, complete. Audio shorter than
    `minimum_input_us` is charged as that long. `max_output_tokens`: what the model produces at most, where it is known.
    Images pay the rates of the first of `image_classes` that covers them, else those of the tariff; one whose size or
    steps were not asked for has `default_image_pixels` and `default_image_steps`.
    """

    model: str
    standard: Tariff
    service_tiers: Mapping[str, Tariff] = {}
    minimum_input_us: int = 0
    max_output_tokens: int | None = None
    image_classes: tuple[ImageClass, ...] = ()
    default_image_pixels: int = 0
    default_image_steps: int = 0

    def cost(
        self,
        usage: Usage,
        service_tier: str | None = None,
        price_of: Callable[[str], ModelPrice | None] | None = None,
    ) -> Cost:
        """The cost of one request. `price_of` finds the price of the other models in `usage.extra`.

        A tier without a tariff is charged as the standard one and named in `unpriced` as "service_tier".
        """
        if service_tier in _STANDARD_TIERS and (plain := self._plain(usage)) is not None:
            return plain
        charge = self._charge(usage, service_tier)
        if usage.extra:
            charges = [charge, *(self._extra(extra, service_tier, price_of) for extra in usage.extra)]
            charge = _Charge(
                sum(each.input for each in charges),
                sum(each.output for each in charges),
                tuple(dict.fromkeys(name for each in charges for name in each.unpriced)),
            )
        total_nano = divide_half_up(charge.input + charge.output, _DENOMINATOR)
        # Rounding up is monotone, so the output's share never exceeds the total and the rest is never negative.
        output_nano = divide_half_up(charge.output, _DENOMINATOR)
        return Cost(total_nano - output_nano, output_nano, total_nano, charge.unpriced)

    @property
    def is_priced(self) -> bool:
        """Whether it has any rate: some models are published without."""
        return self.standard.rates != _UNPRICED

    def lines(self, usage: Usage, service_tier: str | None = None) -> tuple[list[PriceLine], Rates]:
        """The classes that `cost` adds up, for showing; other models' iterations apart. And the rates that they pay."""
        usage, tokens, rates = self._rates_for(usage, service_tier)
        measures = (*_input_measures(usage), *_output_measures(usage), *self._image_measures(rates, usage))
        counts = [*tokens.items(), *_output_tokens(usage).items(), *((name, count or 0) for _, name, count in measures)]
        counts += [(name, getattr(usage, field) or 0) for field, name in _FEES]
        counts += [("requests_kcount", 1)] if rates.requests_kcount is not None else []
        found = []
        for name, count in counts:
            if count > 0:
                paid_as = paid_rate(rates, name)
                found.append(PriceLine(name, count, paid_as, getattr(rates, paid_as) if paid_as else 0))
        return found, rates

    def _plain(self, usage: Usage) -> Cost | None:
        """The same, straight: text tokens in and out at two rates, nothing else. None where there is more to it."""
        rates, counts = self.standard.rates, astuple(usage)
        inputs, outputs = counts[_INPUT_FIELD], counts[_OUTPUT_FIELD]
        if (
            inputs is None
            or outputs is None
            or rates.input_mtok is None
            or rates.output_mtok is None
            or rates.requests_kcount is not None
            or self.standard.bands
            or any(counts[_INPUT_FIELD + 1 : _OUTPUT_FIELD])
            or any(counts[_OUTPUT_FIELD + 1 :])
        ):
            return None
        weight = _WEIGHTS["input_mtok"]
        input_charge, output_charge = inputs * rates.input_mtok * weight, outputs * rates.output_mtok * weight
        total_nano = divide_half_up(input_charge + output_charge, _DENOMINATOR)
        output_nano = divide_half_up(output_charge, _DENOMINATOR)
        return Cost(total_nano - output_nano, output_nano, total_nano)

    def _charge(self, usage: Usage, service_tier: str | None, *, request_fee: bool = True) -> _Charge:
        usage, tokens, rates = self._rates_for(usage, service_tier)
        inputs, unpriced = _side(rates, "input_tokens", tokens, _input_measures(usage))
        measures = _output_measures(usage)
        if usage.images or usage.image_pixels:
            measures += self._image_measures(rates, usage)
        outputs, unpriced_outputs = _side(rates, "output_tokens", _output_tokens(usage), measures)
        if inputs and not unpriced and unpriced_outputs == ["output_characters"]:
            unpriced_outputs = []  # a transcript whose recording is paid for
        fees, unpriced_fees = _fees(rates, usage)
        if request_fee and rates.requests_kcount is not None:
            fees += rates.requests_kcount * _WEIGHTS["requests_kcount"]
        if service_tier not in _STANDARD_TIERS and service_tier not in self.service_tiers:
            unpriced_fees.append("service_tier")
        return _Charge(inputs + fees, outputs, (*unpriced, *unpriced_outputs, *unpriced_fees))

    def _rates_for(self, usage: Usage, service_tier: str | None) -> tuple[Usage, Counts, Rates]:
        """What is charged: the usage, its input tokens by class, and the rates that they pay."""
        if self.minimum_input_us and usage.input_us:
            usage = msgspec.structs.replace(usage, input_us=max(usage.input_us, self.minimum_input_us))
        tokens = _input_tokens(usage)
        tariff = self.service_tiers.get(service_tier or "", self.standard)
        rates = tariff.rates_for(sum(tokens.values())) if tariff.bands else tariff.rates
        if usage.images and self.image_classes:
            rates = next((each.rates for each in self.image_classes if each.covers(usage)), rates)
        return usage, tokens, rates

    def _image_measures(self, rates: Rates, usage: Usage) -> tuple[Measure, ...]:
        """Images by their pixels, where that is what they are charged by."""
        if rates.images_mpixels is None and rates.images_step_mpixels is None:
            return ()
        pixels, steps = usage.image_pixels, usage.image_steps
        if pixels is None:
            pixels = (usage.images or 0) * self.default_image_pixels
        if steps is None:
            steps = self.default_image_steps
        pixels, steps = max(pixels, 0), max(steps, 0)
        if rates.images_step_mpixels is None:
            return (("image_pixels", "images_mpixels", pixels),)
        return (
            ("image_pixels", "images_mpixels", None if rates.images_mpixels is None else pixels),
            ("image_steps", "images_step_mpixels", pixels * steps),
        )

    def _extra(
        self, extra: ExtraUsage, service_tier: str | None, price_of: Callable[[str], ModelPrice | None] | None
    ) -> _Charge:
        price: ModelPrice | None = self
        if extra.model is not None:
            price = price_of(extra.model) if price_of else None
        if price is None:
            return _Charge(0, 0, (f"extra.{extra.kind}",))
        usage = Usage(
            input_tokens=extra.input_tokens,
            cached_input_tokens=extra.cached_input_tokens,
            cache_write_tokens=extra.cache_write_tokens,
            input_image_tokens=extra.input_image_tokens,
            output_tokens=extra.output_tokens,
            output_image_tokens=extra.output_image_tokens,
        )
        return price._charge(usage, service_tier, request_fee=False)


def atto(price_usd: Decimal) -> int:
    """Atto-dollars of a price in dollars, which ends there: what is finer is rounded half up."""
    return int((price_usd * ATTO).to_integral_value(ROUND_HALF_UP))


def _input_tokens(usage: Usage) -> Counts:
    cached, written, written_1h = usage.cached_input_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens
    cached_audio, audio = usage.cached_audio_tokens, usage.input_audio_tokens
    cached_image, image, video = usage.cached_image_tokens, usage.input_image_tokens, usage.input_video_tokens
    if not (cached or written or written_1h or cached_audio or audio or cached_image or image or video):
        return _disjoint(usage.input_tokens, {}, "input_mtok")
    cached_audio, cached_image, written_1h = cached_audio or 0, cached_image or 0, written_1h or 0
    parts = {
        "cached_audio_mtok": cached_audio,
        "cached_image_mtok": cached_image,
        "cached_input_mtok": (cached or 0) - cached_audio - cached_image,
        "cache_write_1h_mtok": written_1h,
        "cache_write_mtok": (written or 0) - written_1h,
        "input_audio_mtok": (audio or 0) - cached_audio,
        "input_image_mtok": (image or 0) - cached_image,
        "input_video_mtok": video or 0,
    }
    return _disjoint(usage.input_tokens, parts, "input_mtok")


def _output_tokens(usage: Usage) -> Counts:
    reasoning, audio, image = usage.reasoning_tokens, usage.output_audio_tokens, usage.output_image_tokens
    if not (reasoning or audio or image):
        return _disjoint(usage.output_tokens, {}, "output_mtok")
    parts = {"reasoning_mtok": reasoning or 0, "output_audio_mtok": audio or 0, "output_image_mtok": image or 0}
    return _disjoint(usage.output_tokens, parts, "output_mtok")


def _disjoint(total: int | None, parts: Counts, rest: str) -> Counts:
    """`parts` and what is left of `total`: never negative, adding up to the total whatever was reported.

    Providers have reported more cached tokens than prompt tokens, so each part is cut to what the parts before it
    left. Without a total the parts are the total.
    """
    counts: Counts = {}
    left = sum(max(count, 0) for count in parts.values()) if total is None else total
    for name, count in parts.items():
        if count > 0 and left > 0:
            counts[name] = min(count, left)
            left -= counts[name]
    if left > 0:
        counts[rest] = left
    return counts


def _input_measures(usage: Usage) -> tuple[Measure, ...]:
    return (
        ("input_characters", "input_mchars", usage.input_characters),
        ("input_us", "input_hours", usage.input_us),
        ("input_bytes", "input_mbytes", usage.input_bytes),
    )


def _output_measures(usage: Usage) -> tuple[Measure, ...]:
    return (
        ("output_characters", "output_mchars", usage.output_characters),
        ("output_us", "output_hours", usage.output_us),
        ("images", "images_kcount", usage.images),
        ("output_bytes", "output_mbytes", usage.output_bytes),
    )


def _side(rates: Rates, token_field: str, tokens: Counts, measures: tuple[Measure, ...]) -> tuple[int, list[str]]:
    """The exact numerator of the input or the output, and the fields of the usage that have no price.

    The fields measure the same work (a transcription reports seconds and perhaps tokens), so one that is priced in
    full vouches for the others; where none is, all that were reported are unpriced.
    """
    amount, missing = _amount(rates, tokens)
    unpriced = [token_field] if missing else []
    vouched = bool(tokens) and not missing
    for field, name, count in measures:
        if count is not None and count > 0:
            part, missing = _amount(rates, {name: count})
            amount += part
            vouched = vouched or not missing
            unpriced += [field] if missing else []
    return amount, [] if vouched else unpriced


def _fees(rates: Rates, usage: Usage) -> tuple[int, list[str]]:
    """The exact numerator of what is charged by the piece beside input and output, and the fields without a price."""
    amount = 0
    unpriced: list[str] = []
    for field, name in _FEES:
        count = getattr(usage, field)
        if count is not None and count > 0:
            part, missing = _amount(rates, {name: count})
            amount += part
            unpriced += [field] if missing else []
    return amount, unpriced


def _amount(rates: Rates, counts: Counts) -> tuple[int, bool]:
    """The exact numerator of `counts`, and whether a rate was missing for some of them."""
    amount, missing = 0, False
    for name, count in counts.items():
        rate = getattr(rates, name)
        if rate is None and (parent := paid_rate(rates, name)) is not None:
            rate = getattr(rates, parent)
        if rate is None:
            missing = True
        else:
            amount += rate * count * _WEIGHTS[name]
    return amount, missing


def paid_rate(rates: Rates, name: str) -> str | None:
    """The rate that the class of the rate `name` pays: its own, else that of the class it is a part of."""
    return next((each for each in (name, *_CHARGED_AS.get(name, ())) if getattr(rates, each) is not None), None)


def line_nano(line: PriceLine) -> Fraction:
    """Nano-dollars of a line, exact."""
    return Fraction(line.rate * line.amount * _WEIGHTS[line.rate_name], _DENOMINATOR)
