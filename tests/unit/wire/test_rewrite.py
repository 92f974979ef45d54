"""`/v1/rewrite/{format}/{url}`: which URLs may be meant, however clients and proxies spelled them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import providers
from gateway.errors import ObolError
from gateway.wire import target
from gateway.wire.rewrite import PREFIX, dialect_of, rewrite_of

CLAUDE = "api.anthropic.com/v1/messages"
LINE = "/v1/forward/https/"


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (f"openai/https://{CLAUDE}", [CLAUDE]),
        (f"openai/{CLAUDE}", [CLAUDE]),
        (f"openai/https:/{CLAUDE}", [CLAUDE]),
        (f"openai/HTTPS://{CLAUDE}", [CLAUDE]),
        (f"openai/https%3A%2F%2F{CLAUDE.replace('/', '%2F')}", [CLAUDE]),
        (
            f"openai/https%3a%2f%2f{CLAUDE.replace('/', '%2F')}/chat/completions",
            [CLAUDE, f"{CLAUDE}/chat/completions"],
        ),
        (
            f"openai/https://{CLAUDE}/v1/chat/completions",
            [CLAUDE, f"{CLAUDE}/v1", f"{CLAUDE}/v1/chat/completions"],
        ),
        (f"anthropic/https://{CLAUDE}/v1/messages?beta=true", [CLAUDE, f"{CLAUDE}/v1/messages"]),
    ],
)
def test_the_urls_that_may_be_meant(raw: str, lines: list[str]):
    found = rewrite_of(PREFIX + raw)
    assert [place.line.removeprefix(LINE) for place in found.places] == lines


@pytest.mark.parametrize(
    ("tail", "format_name", "model"),
    [
        ("/v1beta/models/claude-x:generateContent", "gemini_generate", "claude-x"),
        ("/v1/models/claude%20x:streamGenerateContent?alt=sse", "gemini_stream", "claude x"),
        ("/v1/models/claude-x:streamGenerateContent", "gemini_stream", "claude-x"),
        ("?alt=sse", "gemini_stream", None),
        ("", "gemini_generate", None),
    ],
)
def test_googles_path_tells_model_and_stream(tail: str, format_name: str, model: str | None):
    found = rewrite_of(f"{PREFIX}google/https://{CLAUDE}{tail}")
    assert (found.format, found.places[0].model) == (format_name, model)
    assert found.places[0].line == LINE + CLAUDE


def test_what_is_the_gateways_own_in_the_query():
    found = rewrite_of(f"{PREFIX}openai/https://{CLAUDE}?key=a%2Fb&x=1&metadata=%7B%22a%22%3A%22b%22%7D")
    assert (found.query, found.query_key, found.metadata) == ("x=1", "a/b", '{"a":"b"}')


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("bedrock/https://bedrock-runtime.us-east-1.amazonaws.com/x", "forward_translation_not_supported"),
        ("OpenAI/https://api.anthropic.com/v1/messages", "forward_translation_not_supported"),
        ("", "forward_translation_not_supported"),
        ("openai", "forward_target_missing"),
        ("openai/", "forward_target_missing"),
    ],
)
def test_what_is_refused(raw: str, code: str):
    with pytest.raises(ObolError) as raised:
        rewrite_of(PREFIX + raw)
    assert raised.value.code == code
    assert dialect_of(PREFIX + raw) == ("openai" if raw.startswith("openai") else None)


TABLE = providers.load()
urls = st.lists(
    st.sampled_from(["https:", "http:", "/", "//", "%2F", "%3A", "..", "api.openai.com", "@", "127.0.0.1", "v1", "\\"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6),
    max_size=8,
).map("".join)


@given(name=st.sampled_from(["openai", "anthropic", "google"]), url=urls)
@settings(max_examples=150, deadline=None)
def test_no_path_escapes_the_rules_for_targets(name: str, url: str):
    """Whatever it says, it is refused, or a URL of https and a public name."""
    try:
        for place in rewrite_of(f"{PREFIX}{name}/{url}").places:
            found = target.resolve(place.line, TABLE)
            assert found.scheme == "https" and "." in found.host and not found.host.endswith((".1", ".localhost"))
    except ObolError as error:
        assert error.status == 400


def test_calls_in_their_own_dialect_do_not_import_it():
    code = "import gateway.app, sys; print([name for name in sys.modules if 'translat' in name and 'gateway' in name])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
