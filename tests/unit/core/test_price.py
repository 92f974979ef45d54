"""The cost function: exact, integer, each token charged once, rounded once."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.price import RATE_NAMES, Band, Cost, ImageClass, ModelPrice, Rates, Tariff, atto, line_nano
from gateway.core.usage import ExtraUsage, Usage

UNITS = {"hours": 3_600_000_000, "kcount": 1_000}
UNITS |= dict.fromkeys(("mtok", "mchars", "mbytes", "mpixels"), 1_000_000)

# Every rate, the field of the usage it prices and the side of the bill. The part classes need their total.
SINGLES = {
    "input_mtok": Usage(input_tokens=1),
    "cached_input_mtok": Usage(input_tokens=1, cached_input_tokens=1),
    "cache_write_mtok": Usage(input_tokens=1, cache_write_tokens=1),
    "cache_write_1h_mtok": Usage(input_tokens=1, cache_write_tokens=1, cache_write_1h_tokens=1),
    "input_audio_mtok": Usage(input_tokens=1, input_audio_tokens=1),
    "cached_audio_mtok": Usage(input_tokens=1, cached_input_tokens=1, input_audio_tokens=1, cached_audio_tokens=1),
    "cached_image_mtok": Usage(input_tokens=1, cached_input_tokens=1, input_image_tokens=1, cached_image_tokens=1),
    "input_image_mtok": Usage(input_tokens=1, input_image_tokens=1),
    "input_video_mtok": Usage(input_tokens=1, input_video_tokens=1),
    "output_mtok": Usage(output_tokens=1),
    "reasoning_mtok": Usage(output_tokens=1, reasoning_tokens=1),
    "output_audio_mtok": Usage(output_tokens=1, output_audio_tokens=1),
    "output_image_mtok": Usage(output_tokens=1, output_image_tokens=1),
    "input_mchars": Usage(input_characters=1),
    "output_mchars": Usage(output_characters=1),
    "input_mbytes": Usage(input_bytes=1),
    "output_mbytes": Usage(output_bytes=1),
    "input_hours": Usage(input_us=1),
    "output_hours": Usage(output_us=1),
    "images_kcount": Usage(images=1),
    "images_mpixels": Usage(image_pixels=1),
    "images_step_mpixels": Usage(image_pixels=1),
    "web_searches_kcount": Usage(web_searches=1),
    "search_units_kcount": Usage(search_units=1),
    "file_searches_kcount": Usage(file_searches=1),
    "requests_kcount": Usage(),
}
NO_COUNTS = ("extra", "image_quality", "image_size")
# Charged on every request, and on the same pixels as `images_mpixels`.
NO_CLASS = {"requests_kcount", "images_step_mpixels"}
OUTPUT_RATES = {name for name in RATE_NAMES if name.startswith(("output", "reasoning", "images"))}


def usd(text: str) -> int:
    return atto(Decimal(text))


def price(**rates: str) -> ModelPrice:
    return ModelPrice(model="m", standard=Tariff(Rates(**{name: usd(text) for name, text in rates.items()})))


def scaled(usage: Usage, times: int) -> Usage:
    return Usage(**{name: count * times for name, count in msgspec.structs.asdict(usage).items() if count})


def test_the_table_of_single_uses_is_complete() -> None:
    assert set(SINGLES) == set(RATE_NAMES)


@pytest.mark.parametrize("name", RATE_NAMES)
def test_each_rate_prices_its_class_in_its_unit(name: str) -> None:
    unit = UNITS[name.rpartition("_")[2]]
    times = 1 if name == "requests_kcount" else unit
    one = msgspec.structs.replace(price(**{name: "1.5"}), default_image_steps=1)
    cost = one.cost(scaled(SINGLES[name], times))
    expected = 1_500_000 if name == "requests_kcount" else 1_500_000_000
    sides = (0, expected) if name in OUTPUT_RATES else (expected, 0)
    assert cost == Cost(*sides, expected)


def test_cached_tokens_are_charged_once() -> None:
    """Check 5: 6 input tokens, 159,217 read from the cache, 2,745 written to it."""
    claude = price(input_mtok="3", cached_input_mtok="0.3", cache_write_mtok="3.75", output_mtok="15")
    usage = Usage(
        input_tokens=6 + 159_217 + 2_745, cached_input_tokens=159_217, cache_write_tokens=2_745, output_tokens=100
    )
    exact = (6 * Decimal(3) + 159_217 * Decimal("0.3") + 2_745 * Decimal("3.75") + 100 * Decimal(15)) / 1_000_000
    assert claude.cost(usage).total_nano == exact * 10**9 == 59_576_850


def test_each_cache_lifetime_has_its_price() -> None:
    claude = price(input_mtok="3", cached_input_mtok="0.3", cache_write_mtok="3.75", cache_write_1h_mtok="6")
    usage = Usage(input_tokens=1_000, cache_write_tokens=700, cache_write_1h_tokens=200)
    assert claude.cost(usage).total_nano == 300 * 3_000 + 500 * 3_750 + 200 * 6_000


def test_audio_and_cached_audio_are_parts_of_the_input() -> None:
    realtime = price(input_mtok="4", cached_input_mtok="0.4", input_audio_mtok="32", cached_audio_mtok="0.5")
    usage = Usage(input_tokens=1_000, cached_input_tokens=300, input_audio_tokens=600, cached_audio_tokens=200)
    # 200 cached audio, 100 cached text, 400 audio, 300 text
    assert realtime.cost(usage).total_nano == 200 * 500 + 100 * 400 + 400 * 32_000 + 300 * 4_000


@pytest.mark.parametrize(
    ("rates", "total_nano"),
    [
        ({"input_mtok": "2"}, 1_000 * 2_000),
        ({"input_mtok": "2", "cached_input_mtok": "1"}, 900 * 2_000 + 100 * 1_000),
        ({"input_mtok": "2", "input_audio_mtok": "8"}, 900 * 2_000 + 100 * 8_000),
        ({"input_mtok": "2", "cached_input_mtok": "1", "input_audio_mtok": "8"}, 900 * 2_000 + 100 * 8_000),
    ],
)
def test_a_class_without_a_price_is_charged_as_its_parent(rates: dict[str, str], total_nano: int) -> None:
    usage = Usage(input_tokens=1_000, cached_input_tokens=100, input_audio_tokens=100, cached_audio_tokens=100)
    assert price(**rates).cost(usage) == Cost(total_nano, 0, total_nano)


def test_a_price_of_zero_is_a_price() -> None:
    usage = Usage(input_tokens=1_000, cached_input_tokens=1_000, output_tokens=0)
    assert price(input_mtok="2", cached_input_mtok="0").cost(usage) == Cost(0, 0, 0)


@pytest.mark.parametrize(
    ("usage", "total_nano"),
    [
        (Usage(input_tokens=10, cached_input_tokens=25), 10 * 1_000),
        (Usage(input_tokens=10, cached_input_tokens=8, input_audio_tokens=8), 8 * 1_000 + 2 * 9_000),
        (Usage(input_tokens=10, cached_input_tokens=-5), 10 * 3_000),
        (Usage(input_tokens=-10, cached_input_tokens=5), 0),
        (Usage(cached_input_tokens=25, input_audio_tokens=3), 25 * 1_000 + 3 * 9_000),
        (Usage(output_tokens=-3), 0),
    ],
)
def test_impossible_reports_neither_refund_nor_charge_twice(usage: Usage, total_nano: int) -> None:
    rates = {"input_mtok": "3", "cached_input_mtok": "1", "input_audio_mtok": "9", "output_mtok": "1"}
    assert price(**rates).cost(usage).total_nano == total_nano


@pytest.mark.parametrize(
    ("rates", "usage", "unpriced"),
    [
        ({"input_mtok": "1"}, Usage(input_tokens=1, output_tokens=1), ("output_tokens",)),
        ({"input_mtok": "1"}, Usage(input_tokens=1, output_tokens=0), ()),
        ({"output_image_mtok": "1"}, Usage(output_tokens=5, output_image_tokens=3), ("output_tokens",)),
        ({"input_mtok": "1"}, Usage(input_characters=4, input_us=3), ("input_characters", "input_us")),
        ({"input_hours": "1"}, Usage(input_us=9, input_tokens=4), ()),
        ({"output_mtok": "1"}, Usage(output_tokens=9, images=1), ()),
        ({"input_mtok": "1"}, Usage(input_tokens=1, web_searches=2, search_units=1), ("web_searches", "search_units")),
        ({"output_mtok": "1"}, Usage(images=2), ("images",)),
    ],
)
def test_what_no_rate_covers_is_named(rates: dict[str, str], usage: Usage, unpriced: tuple[str, ...]) -> None:
    assert price(**rates).cost(usage).unpriced == unpriced


@pytest.mark.parametrize(
    ("input_tokens", "cached", "nano_each"),
    [
        (199_999, 0, 1_000),
        (200_000, 0, 1_000),
        (200_001, 0, 2_000),
        (200_000, 199_999, 1_000),
        (200_001, 200_001, 2_000),
    ],
)
def test_a_long_prompt_pays_the_band_for_the_whole_request(input_tokens: int, cached: int, nano_each: int) -> None:
    """Check 20. The cached tokens count towards the threshold."""
    low = Rates(input_mtok=usd("1"), cached_input_mtok=usd("1"), output_mtok=usd("10"))
    high = Rates(input_mtok=usd("2"), cached_input_mtok=usd("2"), output_mtok=usd("20"))
    model = ModelPrice(model="m", standard=Tariff(low, (Band(200_000, high),)))
    cost = model.cost(Usage(input_tokens=input_tokens, cached_input_tokens=cached, output_tokens=7))
    assert (cost.input_nano, cost.output_nano) == (input_tokens * nano_each, 7 * 10 * nano_each)


def test_the_highest_band_reached_counts() -> None:
    bands = tuple(Band(start, Rates(input_mtok=usd(text))) for start, text in ((10, "2"), (20, "3")))
    model = ModelPrice(model="m", standard=Tariff(Rates(input_mtok=usd("1")), bands))
    assert [model.cost(Usage(input_tokens=n)).total_nano for n in (10, 11, 20, 21)] == [10_000, 22_000, 40_000, 63_000]


def test_service_tiers() -> None:
    model = ModelPrice(
        model="m",
        standard=Tariff(Rates(input_mtok=usd("1"))),
        service_tiers={"priority": Tariff(Rates(input_mtok=usd("2")))},
    )
    costs = {tier: model.cost(Usage(input_tokens=1), tier) for tier in (None, "default", "priority", "flex")}
    assert costs[None] == costs["default"] == Cost(1_000, 0, 1_000)
    assert costs["priority"] == Cost(2_000, 0, 2_000)
    assert costs["flex"] == Cost(1_000, 0, 1_000, ("service_tier",))


def test_short_audio_is_charged_as_the_minimum() -> None:
    whisper = ModelPrice(model="w", standard=Tariff(Rates(input_hours=usd("0.04"))), minimum_input_us=10_000_000)
    ten_seconds = whisper.cost(Usage(input_us=10_000_000)).total_nano
    assert ten_seconds == 111_111
    assert whisper.cost(Usage(input_us=1)).total_nano == ten_seconds
    assert whisper.cost(Usage(input_us=0)).total_nano == 0
    assert whisper.cost(Usage(input_us=20_000_000)).total_nano == 222_222


def test_extra_iterations_pay_the_price_of_their_model() -> None:
    own = price(input_mtok="1", output_mtok="2", requests_kcount="5")
    advisor = price(input_mtok="10", output_mtok="20", requests_kcount="7")
    extra = (
        ExtraUsage(kind="compaction", input_tokens=3, output_tokens=1),
        ExtraUsage(kind="advisor_message", model="big", input_tokens=2, output_tokens=4),
    )
    usage = Usage(input_tokens=100, output_tokens=10, extra=extra)
    known = own.cost(usage, price_of={"big": advisor}.get)
    assert known == Cost((100 + 3 + 20) * 1_000 + 5_000_000, (10 + 1 + 40) * 2_000, 5_225_000)
    unknown = own.cost(usage, price_of={}.get)
    assert unknown == Cost(103_000 + 5_000_000, 22_000, 5_125_000, ("extra.advisor_message",))


def test_images_drawn_on_the_side_have_their_own_classes() -> None:
    own = price(input_mtok="1", output_mtok="2")
    drawing = price(input_mtok="5", input_image_mtok="10", output_mtok="8", output_image_mtok="40")
    extra = ExtraUsage(
        kind="image_generation",
        model="drawing",
        input_tokens=30,
        input_image_tokens=20,
        output_tokens=100,
        output_image_tokens=90,
    )
    cost = own.cost(Usage(input_tokens=1, output_tokens=1, extra=(extra,)), price_of={"drawing": drawing}.get)
    assert cost.total_nano == 1_000 + 2_000 + 10 * 5_000 + 20 * 10_000 + 10 * 8_000 + 90 * 40_000


def test_one_rounding_half_up_at_the_total() -> None:
    """A quarter of a nano-dollar each for input and output make half of one together, which is one."""
    cheap = price(input_mtok="0.00025", output_mtok="0.00025")
    assert cheap.cost(Usage(input_tokens=1)) == Cost(0, 0, 0)
    assert cheap.cost(Usage(input_tokens=1, output_tokens=1)) == Cost(1, 0, 1)
    assert cheap.cost(Usage(input_tokens=2, output_tokens=2)) == Cost(0, 1, 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("0.041666666666666664", 41666666666666664), ("0.18000000000000002", 180000000000000020)]
)
def test_published_prices_of_eighteen_places_stay_exact(text: str, expected: int) -> None:
    assert usd(text) == expected


RATE = st.integers(0, 10**21)
COUNT = st.integers(0, 10**8)
ALL_RATES = st.builds(Rates, **dict.fromkeys(RATE_NAMES, RATE))


@st.composite
def usages(draw: st.DrawFn) -> dict[str, int]:
    """How often each single use of the table occurs: the parts never exceed their totals."""
    return {name: draw(COUNT) for name in RATE_NAMES if name not in NO_CLASS}


def combined(times: dict[str, int]) -> Usage:
    totals: dict[str, int] = {}
    for name, count in times.items():
        for field, one in msgspec.structs.asdict(SINGLES[name]).items():
            if one:
                totals[field] = totals.get(field, 0) + count
    return Usage(**totals)


@given(rates=ALL_RATES, times=usages())
def test_the_classes_add_up(rates: Rates, times: dict[str, int]) -> None:
    """The cost is the exact sum over the disjoint classes, rounded half up once."""
    exact_nano = Fraction(rates.requests_kcount or 0, 1_000 * 10**9)
    for name, count in times.items():
        exact_nano += Fraction(count * getattr(rates, name), UNITS[name.rpartition("_")[2]] * 10**9)
    cost = ModelPrice(model="m", standard=Tariff(rates)).cost(combined(times))
    assert cost.total_nano == math.floor(exact_nano + Fraction(1, 2))
    assert cost.total_nano == cost.input_nano + cost.output_nano
    assert min(cost.input_nano, cost.output_nano) >= 0
    assert all(type(amount) is int for amount in (cost.input_nano, cost.output_nano, cost.total_nano))
    assert cost.unpriced == ()
    lines, _ = ModelPrice(model="m", standard=Tariff(rates)).lines(combined(times))
    assert sum(map(line_nano, lines)) == exact_nano


@given(rates=ALL_RATES, times=usages(), name=st.sampled_from(sorted(set(RATE_NAMES) - NO_CLASS)), more=COUNT)
def test_more_use_never_costs_less(rates: Rates, times: dict[str, int], name: str, more: int) -> None:
    model = ModelPrice(model="m", standard=Tariff(rates))
    before = model.cost(combined(times)).total_nano
    assert model.cost(combined(times | {name: times[name] + more})).total_nano >= before


@given(
    rates=st.builds(Rates, **dict.fromkeys(RATE_NAMES, st.none() | RATE)),
    counts=st.dictionaries(
        st.sampled_from([f for f in Usage.__struct_fields__ if f not in NO_COUNTS]), st.integers(-(10**6), 10**9)
    ),
)
def test_no_report_costs_less_than_nothing(rates: Rates, counts: dict[str, int]) -> None:
    cost = ModelPrice(model="m", standard=Tariff(rates)).cost(Usage(**counts))
    assert cost.input_nano >= 0 and cost.output_nano >= 0
    assert set(cost.unpriced) <= {field for field, count in counts.items() if count > 0} | {
        "input_tokens",
        "output_tokens",
    }


DALL_E = ModelPrice(
    model="m",
    standard=Tariff(Rates(images_kcount=usd("40"))),
    image_classes=(
        ImageClass(Rates(images_kcount=usd("80")), quality="hd", size="1024x1024"),
        ImageClass(Rates(images_kcount=usd("120")), quality="hd"),
        ImageClass(Rates(images_kcount=usd("81")), size="1024x1792"),
    ),
)


@pytest.mark.parametrize(
    ("quality", "size", "usd_each"),
    [
        (None, None, "0.04"),
        ("standard", "1024x1024", "0.04"),
        ("hd", "1024x1024", "0.08"),
        ("hd", "1024x1792", "0.12"),
        ("hd", None, "0.12"),
        ("standard", "1024x1792", "0.081"),
        (None, "1024x1792", "0.081"),
    ],
)
def test_images_are_priced_by_quality_and_size(quality: str | None, size: str | None, usd_each: str) -> None:
    """The first class that covers them counts, else the rate of the model."""
    cost = DALL_E.cost(Usage(images=3, image_quality=quality, image_size=size, image_pixels=5))
    nano = int(3 * Decimal(usd_each) * 10**9)
    assert cost == Cost(0, nano, nano)


@pytest.mark.parametrize(
    ("usage", "pixels", "steps"),
    [
        (Usage(images=2, image_pixels=2 * 512 * 512, image_steps=25), 2 * 512 * 512, 25),
        (Usage(images=2, image_pixels=2 * 512 * 512), 2 * 512 * 512, 4),
        (Usage(images=2, image_steps=50), 2 * 1024 * 1024, 50),
        (Usage(images=2), 2 * 1024 * 1024, 4),
    ],
)
def test_images_are_priced_by_pixels_and_steps(usage: Usage, pixels: int, steps: int) -> None:
    """What the request does not say is the vendor's default: an image is never free for want of a size."""
    sized = {"default_image_pixels": 1024 * 1024, "default_image_steps": 4}
    flat = msgspec.structs.replace(price(images_mpixels="0.003"), **sized)
    stepped = msgspec.structs.replace(price(images_step_mpixels="0.0004"), **sized)
    for one, exact in ((flat, pixels * Decimal("3")), (stepped, pixels * steps * Decimal("0.4"))):
        nano = int(exact.to_integral_value(ROUND_HALF_UP))
        assert one.cost(usage) == Cost(0, nano, nano)


def test_images_without_a_price_are_named() -> None:
    usage = Usage(images=2, image_pixels=512 * 512, image_size="512x512")
    assert price(input_mtok="1").cost(usage) == Cost(0, 0, 0, ("images",))
    assert price(images_mpixels="1").cost(Usage(images=2)) == Cost(0, 0, 0, ("images",))


def test_a_transcript_is_paid_for_with_its_recording() -> None:
    heard = Usage(input_us=3_600_000_000, output_characters=9)
    assert price(input_hours="0.36").cost(heard) == Cost(360_000_000, 0, 360_000_000)
    assert price(output_mtok="1").cost(heard).unpriced == ("input_us", "output_characters")
