"""Which calls may be billed for reasoning that their stream does not show."""

from __future__ import annotations

import json

import pytest

from gateway.wire.contract import ALL
from gateway.wire.formats import FORMATS
from gateway.wire.reasoning import anthropic_hidden, gemini_hidden, openai_hidden


@pytest.mark.parametrize(
    ("model", "hides"),
    [
        ("o1", True),
        ("o3-mini-2025-01-31", True),
        ("openai/o4-mini", True),
        ("gpt-5", True),
        ("openai/gpt-5.1-codex", True),
        ("grok-4-fast", True),
        ("grok-3-mini", True),
        ("google/gemini-2.5-pro", True),
        ("gpt-4o-mini", False),
        ("gpt-4.1", False),
        ("grok-3", False),
        ("gemini-2.0-flash", False),
        ("deepseek-reasoner", False),
        ("openai/gpt-oss-120b", False),
        ("claude-sonnet-4-5", False),
        ("foo1", False),
        ("co3", False),
    ],
)
def test_by_model(model, hides):
    assert openai_hidden(model, None, None) == (ALL if hides else 0)


@pytest.mark.parametrize(
    ("effort", "reasoning", "expected"),
    [
        ("low", None, ALL),
        ("none", None, 0),
        (None, {"effort": "none"}, 0),
        (None, {"enabled": False}, 0),
        (None, {"effort": "high"}, ALL),
        (None, {"max_tokens": 2_000}, 2_000),
        (None, "nonsense", 0),
    ],
)
def test_by_what_an_openai_request_asks(effort, reasoning, expected):
    assert openai_hidden("some-model", effort, reasoning) == expected
    if not expected:
        assert openai_hidden("gpt-5", effort, reasoning) == (ALL if reasoning == "nonsense" else 0)


def test_anthropic():
    assert anthropic_hidden({"type": "enabled", "budget_tokens": 4_096}) == 4_096
    assert anthropic_hidden({"type": "adaptive"}) == ALL
    assert anthropic_hidden({"type": "disabled"}) == anthropic_hidden(None) == anthropic_hidden(7) == 0


def test_gemini():
    assert gemini_hidden("gemini-2.5-flash", {"thinkingBudget": 0}) == 0
    assert gemini_hidden("gemini-2.5-flash", {"thinking_budget": 512}) == 512
    assert gemini_hidden("gemini-2.5-flash", {"thinkingBudget": -1}) == ALL
    assert gemini_hidden("gemini-2.5-flash", None) == ALL
    assert gemini_hidden("gemini-1.5-flash", None) == 0


@pytest.mark.parametrize(
    ("name", "path", "body", "expected"),
    [
        ("openai_chat", "", {"model": "x", "reasoning_effort": "high"}, ALL),
        ("openai_chat", "", {"model": "x"}, 0),
        ("openai_responses", "", {"model": "x", "reasoning": {"effort": "low"}}, ALL),
        ("anthropic_messages", "", {"model": "x", "thinking": {"type": "enabled", "budget_tokens": 1024}}, 1_024),
        (
            "gemini_stream",
            "/v1beta/models/x:streamGenerateContent",
            {"generationConfig": {"thinkingConfig": {"thinkingBudget": 99}}},
            99,
        ),
    ],
)
def test_the_formats_read_it(name, path, body, expected):
    assert FORMATS[name].read_request(json.dumps(body).encode(), path, "").hidden_tokens_max == expected
