"""What a setting may be, and what of the settings is secret."""

from __future__ import annotations

import json

import pytest

from gateway.errors import ConfigurationError
from gateway.settings import Settings, load


@pytest.mark.parametrize("key", ["sk-1\n", "sk-1\r\nX-Other: 1", "sk 1", " sk-1", "sk-\u00e9", "sk-\x7f"])
def test_a_provider_key_that_would_break_a_header_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(ConfigurationError, match="OBOL_PROVIDER_KEY_OPENAI has a space, a line break") as caught:
        load({"OBOL_PROVIDER_KEY_OPENAI": key})
    assert "sk" not in str(caught.value)


def test_hosts_that_may_be_private_are_named_exactly() -> None:
    names = ("llm.corp.example", "models.lan")
    assert load({"OBOL_PRIVATE_UPSTREAMS": json.dumps(names)}).private_upstreams == names
    for bad in (
        "10.0.0.1",
        "10.0.0.0/8",
        "*.corp.example",
        "LLM.corp.example",
        "llm.corp.example.",
        "llm:443",
        "llm",
        "",
    ):
        with pytest.raises(ConfigurationError, match="private_upstreams"):
            load({"OBOL_PRIVATE_UPSTREAMS": json.dumps([bad])})
    with pytest.raises(ConfigurationError, match="OBOL_PRIVATE_UPSTREAMS is not JSON"):
        load({"OBOL_PRIVATE_UPSTREAMS": "llm.corp.example"})


def test_the_secrets_are_known() -> None:
    settings = Settings(
        master_key="master",
        provider_keys={"openai": "sk-1", "groq": "gsk-2"},
        redis_url="redis://:p%40ss/w:rd@127.0.0.1:6379/0",
        postgres_url="postgresql://obol:secret@db/x?sslmode=require",
    )
    assert set(settings.secrets()) >= {"master", "sk-1", "gsk-2", "p%40ss/w:rd", "p@ss/w:rd", "secret"}
    assert Settings().secrets() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_TEST_KEY", "sk_live_canary"),
        ("STRIPE_LIVE_KEY", "sk_test_canary"),
        ("STRIPE_LIVE_KEY", "pk_live_canary"),
        ("STRIPE_TEST_KEY", "rk_live_canary"),
        ("STRIPE_TEST_PUBLISHABLE_KEY", "sk_test_canary"),
        ("STRIPE_LIVE_PUBLISHABLE_KEY", "pk_test_canary"),
        ("STRIPE_TEST_WEBHOOK_SECRET", "sk_test_canary"),
        ("STRIPE_LIVE_KEY", "sk_live_canary\n"),
        ("STRIPE_URL", "http://canary.example:80"),
        ("TWILIO_ACCOUNT_SID", "SKcanary"),
        ("TWILIO_VERIFY_SERVICE_SID", "canary"),
        ("TWILIO_AUTH_TOKEN", "canary\r\nX: 1"),
    ],
)
def test_a_key_of_the_wrong_mode_or_kind_is_refused_by_its_name_alone(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name.lower()) as caught:
        load({f"OBOL_{name}": value})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"OBOL_STRIPE_TEST_KEY": "sk_test_canary"}, "OBOL_STRIPE_TEST_PUBLISHABLE_KEY are set both"),
        ({"OBOL_STRIPE_LIVE_PUBLISHABLE_KEY": "pk_live_canary"}, "OBOL_STRIPE_LIVE_KEY and"),
        ({"OBOL_TWILIO_AUTH_TOKEN": "canary"}, "are set all, or none"),
        ({"OBOL_STRIPE_URL": "http://127.0.0.1:9"}, "OBOL_TEST_MODE"),
        ({"OBOL_TWILIO_URL": "http://127.0.0.1:9"}, "OBOL_TEST_MODE"),
    ],
)
def test_keys_come_in_whole_sets(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        load(environ)
    assert "canary" not in str(caught.value)


def test_the_keys_of_processors_are_secret() -> None:
    settings = load(
        {
            "OBOL_STRIPE_TEST_KEY": "rk_test_1",
            "OBOL_STRIPE_TEST_PUBLISHABLE_KEY": "pk_test_1",
            "OBOL_STRIPE_TEST_WEBHOOK_SECRET": "whsec_1",
            "OBOL_STRIPE_LIVE_KEY": "sk_live_2",
            "OBOL_STRIPE_LIVE_PUBLISHABLE_KEY": "pk_live_2",
            "OBOL_STRIPE_LIVE_WEBHOOK_SECRET": "whsec_2",
            "OBOL_TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
            "OBOL_TWILIO_AUTH_TOKEN": "token3",
            "OBOL_TWILIO_VERIFY_SERVICE_SID": "VA" + "1" * 32,
        }
    )
    assert set(settings.secrets()) >= {"rk_test_1", "whsec_1", "sk_live_2", "whsec_2", "token3"}
