"""`obol prices`: what it says, in text and JSON, and its exit codes."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway import price_list
from gateway.__main__ import main
from gateway.core.price import RATE_NAMES
from gateway.core.usage import Usage
from gateway.errors import ConfigurationError
from gateway.price_list import Wanted, show
from gateway.prices import Book, compile_book
from gateway.prices.explain import LABELS, UNITS
from gateway.prices.usage_text import read_usage
from gateway.settings import Settings

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OWN = """
[[price]]
provider = "deepinfra"
models = ["org/model-*"]
rates = { input_mtok = "0.25", cached_input_mtok = "0.05", output_mtok = "1" }
bands = [{ above_input_tokens = 1000, rates = { input_mtok = "0.5" } }]
service_tiers = { priority = { output_mtok = "3" } }
max_output_tokens = 9000

[[price]]
provider = "openai"
models = ["dall-e-3"]
rates = { images_kcount = "40" }
image_classes = [{ quality = "hd", rates = { images_kcount = "80" } }]

[[price]]
provider = "api.example.com"
models = ["/v1/search"]
rates = { requests_kcount = "4" }
"""


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(OWN)
    return compile_book(NOW, path)


def shown(book: Book, *names: str, **more: Any) -> Any:
    return json.loads(show(book, Wanted(*names, as_json=True, **more)))


def test_providers_are_counted_by_source(book: Book) -> None:
    found = shown(book)
    assert found["version"] == book.version
    counts = found["providers"]
    assert counts["deepinfra"] == {"operator": 1} and counts["api.example.com"] == {"operator": 1}
    assert counts["chutes"] == {} and counts["openai"]["operator"] == 1 and counts["openai"]["published"] > 100
    text = show(book, Wanted())
    assert "chutes                   no published prices: see config/prices.toml" in text
    assert f"openai                   1 operator, {counts['openai']['published']} published" in text


def test_models_are_listed_once_and_each_is_what_is_charged(book: Book) -> None:
    listed = {model["model"]: model for model in shown(book, "openai")["models"]}
    assert listed["dall-e-3"]["source"] == "operator"
    assert len(listed) == len(shown(book, "openai")["models"]) > 100
    assert listed["gpt-4.1"] == shown(book, "openai", "gpt-4.1")
    text = show(book, Wanted("google"))
    (line,) = (line for line in text.splitlines() if line.startswith("gemini-2.5-pro "))
    assert line.split()[:5] == ["gemini-2.5-pro", "published", "1.25", "0.125", "10"]
    assert "above 200,000 tokens" in line and "tier batch" in line


def test_a_price_is_explained(book: Book) -> None:
    found = shown(book, "DeepInfra", "Org/Model-7")
    assert (found["provider"], found["source"], found["version"]) == ("deepinfra", "operator", book.version)
    assert found["rates"] == {"input_mtok": "0.25", "cached_input_mtok": "0.05", "output_mtok": "1"}
    assert found["bands"] == [{"above_input_tokens": 1000, "rates": found["rates"] | {"input_mtok": "0.5"}}]
    assert found["service_tiers"]["priority"]["rates"]["output_mtok"] == "3"
    assert found["charged_as"]["reasoning_mtok"] == "output_mtok" and found["max_output_tokens"] == 9000
    assert found["valid_until"].startswith("2026-11-23T")
    published = shown(book, "googleOpenaiCompatible", "gemini-2.5-pro")
    assert (published["source"], published["published_by"]) == ("published", "google")
    images = shown(book, "openai", "dall-e-3")["image_classes"]
    assert images == [{"quality": "hd", "size": None, "rates": {"images_kcount": "80"}}]


@pytest.mark.parametrize(
    ("provider", "model", "tier"),
    [("deepinfra", "org/model-1", "priority"), ("openai", "gpt-5.2", "flex"), ("google", "gemini-2.5-pro", None)],
)
@pytest.mark.parametrize("usage", ["input=1000,cached=500,output=200", "input=300000,cached=1,output=9,reasoning=4"])
def test_an_example_adds_up(book: Book, provider: str, model: str, tier: str | None, usage: str) -> None:
    """Its total is what a call would be charged, and its lines come to the total."""
    found = shown(book, provider, model, usage=read_usage(usage), service_tier=tier)["example"]
    cost = book.cost(provider, model, read_usage(usage), tier)
    assert cost is not None and Decimal(found["total_cost"]) * 10**9 == cost.total_nano
    lines = sum((Decimal(line["cost"]) for line in found["lines"]), start=Decimal(0))
    assert abs(lines - Decimal(found["total_cost"])) <= Decimal("0.0000000005") and found["unpriced"] == []


def test_the_text_tells_bands_tiers_and_the_example(book: Book) -> None:
    usage = read_usage("input=1000,cached=500,output=200")
    text = show(book, Wanted("deepinfra", "org/model-1", usage, "priority"))
    for expected in (
        f"version      {book.version}",
        "source       the operator's prices (config/prices.toml), as org/model-*",
        "prompts above 1,000 tokens, cached ones included:",
        "service tier priority:",
        "as output tokens: reasoning tokens, audio output tokens, image output tokens",
        "at 0.25 a million = 0.000125",
        "total 0.0007500000 USD (input 0.0001500000, output 0.0006000000)",
        "produces at most 9,000 tokens",
    ):
        assert expected in text, text


def test_what_has_no_price_is_named(book: Book) -> None:
    usage = read_usage("input=10,output=5")
    found = shown(book, "openai", "dall-e-3", usage=usage)["example"]
    assert (found["total_cost"], found["unpriced"]) == ("0.0000000000", ["input_tokens", "output_tokens"])
    text = show(book, Wanted("openai", "dall-e-3", usage))
    assert "without a price" in text and "not in it, for want of a price: input_tokens, output_tokens" in text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("opena",), r"there is no provider 'opena' \(perhaps openai\)"),
        (("openai", "gpt4.1"), r"no price for the model 'gpt4.1' of openai \(perhaps gpt-4\.1"),
        (("kluster",), "no prices of kluster are published: add them to config/prices.toml"),
        (("kluster", "m"), "there is no price for the model 'm' of kluster"),
    ],
)
def test_what_is_not_there_is_told(book: Book, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        show(book, Wanted(*names))


def test_every_rate_has_words() -> None:
    assert set(LABELS) == set(RATE_NAMES) and {name.rpartition("_")[2] for name in RATE_NAMES} == set(UNITS)


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        ("input=1000,cached=500,output=200", Usage(input_tokens=1000, cached_input_tokens=500, output_tokens=200)),
        ("input_tokens=7", Usage(input_tokens=7)),
        ("seconds=2.5, output_seconds=1", Usage(input_us=2_500_000, output_us=1_000_000)),
        ("characters=9", Usage(input_characters=9)),
        ("images=2,image_size=1024X1792,image_quality=hd", Usage(images=2, image_size="1024x1792", image_quality="hd")),
    ],
)
def test_a_usage_is_read(text: str, usage: Usage) -> None:
    assert read_usage(text) == usage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no name=count; the names are cache_write, "),
        ("foo=1", "'foo=1' is no name=count"),
        ("extra=1", "'extra=1' is no name=count"),
        ("input=-1", "input=-1 is not a count"),
        ("input=1.5", "input=1.5 is not a count"),
        ("input=nan", "input=nan is not a count"),
        ("input=9999999999999", "input=9999999999999 is not a count"),
        ("seconds=0.0000001", "is not a count"),
        ("input=1,input_tokens=1", "input_tokens is given twice"),
        ("input=4,cached=5", "cached_input_tokens is a part of input_tokens"),
        ("reasoning=5", "reasoning_tokens is a part of output_tokens"),
    ],
)
def test_a_bad_usage_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_usage(text)


def run(*arguments: str) -> int:
    return main(["prices", *arguments])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("openai", "gpt-4.1", "--usage", "input=1000000", "--json") == 0
    assert json.loads(capsys.readouterr().out)["example"]["total_cost"] == "2.0000000000"
    assert run("openai", "no-such-model") == 1
    assert "there is no price for the model 'no-such-model' of openai" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["openai", "gpt-4.1", "--usage", "input"], "--usage: 'input' is no name=count"),
        (["openai", "--usage", "input=1"], "--usage goes with a provider and a model"),
        (["openai", "gpt-4.1", "--tier", "flex"], "--tier with --usage"),
        (["--clear"], "--replace and --clear go with --merchant and nothing else"),
        (["openai", "--merchant", "m", "--clear"], "--replace and --clear go with --merchant and nothing else"),
    ],
)
def test_wrong_usage_of_the_command(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [Wanted(merchant_id="m"), Wanted(version="v"), Wanted(merchant_id="m", clear=True)])
def test_what_is_stored_needs_the_engines(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_list, "_ENGINE_WAIT_S", 0.2)
    with pytest.raises(ConfigurationError, match="OBOL_POSTGRES_URL"):
        price_list.main(Settings(), wanted, io.StringIO())
    away = Settings(postgres_url="postgresql://a:b@127.0.0.1:1/c", redis_url="redis://127.0.0.1:1/0")
    with pytest.raises(ConfigurationError, match="the engines are not usable"):
        price_list.main(away, wanted, io.StringIO())


def test_a_misspelt_provider_of_a_merchant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('[[price]]\nprovider = "opnai"\nmodels = ["m"]\nrates = { input_mtok = "1" }\n')
    wanted = Wanted(merchant_id="m", replace=path)
    away = Settings(postgres_url="postgresql://a:b@127.0.0.1:1/c", redis_url="redis://127.0.0.1:1/0")
    with pytest.raises(ConfigurationError, match=r"there is no provider 'opnai' \(perhaps openai\)"):
        price_list.main(away, wanted, io.StringIO())
