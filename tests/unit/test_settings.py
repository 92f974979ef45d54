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
    assert set(Settings().secrets()) == {""}
