"""The provider table: the 28 rows as shipped, the lookups, and what a wrong table is told."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from gateway import providers
from gateway.errors import ConfigurationError
from gateway.wire.formats import FORMATS as READERS

REPO = Path(__file__).parents[2]
RECORDINGS = REPO.parent / "shared" / "recordings" / "http"

# name, base, header that carries the key, inject_usage
TABLE = [
    ("openai", "https://api.openai.com/v1", "authorization", True),
    ("anthropic", "https://api.anthropic.com/v1", "x-api-key", True),
    ("mistral", "https://api.mistral.ai/v1", "authorization", False),
    ("deepseek", "https://api.deepseek.com/v1", "authorization", False),
    ("xai", "https://api.x.ai/v1", "authorization", True),
    ("google", "https://generativelanguage.googleapis.com/v1beta", "x-goog-api-key", False),
    ("googleOpenaiCompatible", "https://generativelanguage.googleapis.com/v1beta/openai", "authorization", False),
    ("kluster", "https://api.kluster.ai/v1", "authorization", True),
    ("inference", "https://api.inference.net/v1", "authorization", True),
    ("groq", "https://api.groq.com/openai/v1", "authorization", False),
    ("novita", "https://api.novita.ai/v3/openai", "authorization", True),
    ("vercel", "https://api.v0.dev/v1", "authorization", True),
    ("together", "https://api.together.xyz/v1", "authorization", False),
    ("hyperbolic", "https://api.hyperbolic.xyz/v1", "authorization", False),
    ("elevenlabs", "https://api.elevenlabs.io/v1", "xi-api-key", False),
    ("sambanova", "https://api.sambanova.ai/v1", "authorization", True),
    ("deepinfra", "https://api.deepinfra.com/v1/openai", "authorization", True),
    ("cohere", "https://api.cohere.ai/compatibility/v1", "authorization", False),
    ("parasail", "https://api.parasail.io/v1", "authorization", True),
    ("nebius", "https://api.studio.nebius.com/v1", "authorization", True),
    ("fireworks", "https://api.fireworks.ai/inference/v1", "authorization", False),
    ("embercloud", "https://api.embercloud.ai/v1", "authorization", True),
    ("cerebras", "https://api.cerebras.ai/v1", "authorization", False),
    ("targon", "https://api.targon.com/v1", "authorization", True),
    ("gmicloud", "https://api.gmi-serving.com/v1", "authorization", True),
    ("chutes", "https://llm.chutes.ai/v1", "authorization", True),
    ("baseten", "https://inference.baseten.co/v1", "authorization", True),
    ("moonshot", "https://api.moonshot.ai/v1", "authorization", True),
]

ALTERNATE_ORIGINS = [
    ("https://api.together.ai", "together"),
    ("https://api.cohere.com", "cohere"),
    ("https://api.studio.nebius.ai", "nebius"),
    ("https://api.tokenfactory.nebius.com", "nebius"),
    ("https://api.moonshot.cn", "moonshot"),
]

GOOGLE = "https://generativelanguage.googleapis.com"

FORMATS = [
    ("openai", "POST", "/v1/chat/completions", "openai_chat"),
    ("openai", "POST", "/v1/chat/completions?a=/embeddings", "openai_chat"),
    ("openai", "POST", "/v1/completions", "openai_completions"),
    ("openai", "POST", "/v1/responses", "openai_responses"),
    ("openai", "POST", "/v1/embeddings", "openai_embeddings"),
    ("openai", "POST", "/v1/images/edits", "images"),
    ("openai", "POST", "/v1/audio/speech", "audio_speech"),
    ("openai", "POST", "/v1/audio/translations", "audio_transcriptions"),
    ("openai", "POST", "/v1/moderations", "moderations"),
    ("openai", "GET", "/v1/chat/completions", "plain"),
    ("openai", "DELETE", "/v1/responses", "plain"),
    ("openai", "POST", "/v1/responses/resp_1/cancel", "unknown"),
    ("openai", "POST", "/v1/threads/t/messages", "unknown"),
    ("openai", "POST", "/v1/files", "plain"),
    ("openai", "POST", "/", "unknown"),
    ("openai", "POST", "", "unknown"),
    ("anthropic", "POST", "/v1/messages", "anthropic_messages"),
    ("anthropic", "POST", "/v1/messages?beta=true", "anthropic_messages"),
    ("anthropic", "POST", "/v1/messages/count_tokens", "anthropic_count_tokens"),
    ("anthropic", "POST", "/v1/messages/batches", "unknown"),
    ("anthropic", "POST", "/v1/chat/completions", "openai_chat"),
    ("deepseek", "POST", "/beta/chat/completions", "openai_chat"),
    ("deepseek", "POST", "/chat/completions", "openai_chat"),
    ("deepseek", "POST", "/anthropic/v1/messages", "anthropic_messages"),
    ("novita", "POST", "/openai/v1/chat/completions", "openai_chat"),
    ("groq", "POST", "/openai/v1/responses", "openai_responses"),
    ("google", "POST", "/v1beta/models/gemini-x:generateContent", "gemini_generate"),
    ("google", "POST", "/v1beta/models/gemini-x:streamGenerateContent?alt=sse", "gemini_stream"),
    ("google", "POST", "/v1/models/e:batchEmbedContents", "gemini_embed"),
    ("google", "POST", "/v1/models/e:countTokens", "gemini_count_tokens"),
    ("google", "POST", "/v1/models/e:otherVerb", "unknown"),
    ("google", "POST", "/v1/mo:generateContent/x", "unknown"),
    ("cohere", "POST", "/v1/chat", "cohere_v1_chat"),
    ("cohere", "POST", "/v2/chat", "cohere_v2_chat"),
    ("cohere", "POST", "/v2/embed", "cohere_embed"),
    ("cohere", "POST", "/v2/rerank", "rerank"),
    ("cohere", "POST", "/compatibility/v1/chat/completions", "openai_chat"),
    ("elevenlabs", "POST", "/v1/text-to-speech/voice", "elevenlabs_tts"),
    ("elevenlabs", "POST", "/v1/text-to-speech/voice/stream/with-timestamps?output_format=x", "elevenlabs_tts"),
    ("elevenlabs", "POST", "/v1/text-to-speech/", "unknown"),
    ("elevenlabs", "POST", "/v1/speech-to-text", "elevenlabs_stt"),
    # Spellings that a lenient server reads as the endpoint must not pass as unmetered.
    ("openai", "POST", "/v1/%63hat/completions", "openai_chat"),
    ("openai", "POST", "/v1/chat%2Fcompletions", "openai_chat"),
    ("openai", "POST", "/v1//chat//completions/", "openai_chat"),
    ("openai", "POST", "/V1/Chat/Completions", "openai_chat"),
    ("openai", "POST", "/v1/chat;x=1/completions;y", "openai_chat"),
    ("google", "POST", "/v1beta/models/gemini-x%3AgenerateContent", "gemini_generate"),
    # What a path cannot hold, or is escaped twice, must not pass as another endpoint.
    ("openai", "POST", "/v1/ch%2561t/completions", "unknown"),
    ("openai", "POST", "/v1/chat%20/completions", "unknown"),
    ("openai", "POST", "/v1/chat%C2%A0/completions", "unknown"),
    ("openai", "POST", "/v1/chat%5C/completions", "unknown"),
    ("openai", "POST", "/v1/x%3F/completions", "unknown"),
]

# The recordings' endpoint family -> our format
FAMILIES = {
    "chat_completions": "openai_chat",
    "completions": "openai_completions",
    "responses": "openai_responses",
    "embeddings": "openai_embeddings",
    "images_generations": "images",
    "images_edits": "images",
}


@pytest.fixture(scope="module")
def table() -> providers.Providers:
    return providers.load()


def named(table: providers.Providers, name: str) -> providers.Provider:
    found = table.by_name(name)
    assert found is not None
    return found


def test_table_is_complete(table: providers.Providers) -> None:
    rows = [(row.name, row.base, row.credential_header("k")[0], row.inject_usage) for row in table]
    assert sorted(rows) == sorted(TABLE)
    assert len(table) == 28


@pytest.mark.parametrize(("name", "base", "_header", "_inject"), TABLE)
def test_base_finds_its_row(table: providers.Providers, name: str, base: str, _header: str, _inject: bool) -> None:
    row = named(table, name)
    found = table.by_origin(row.origin, base.removeprefix(row.origin) + "/x")
    assert found is row


@pytest.mark.parametrize(("origin", "name"), ALTERNATE_ORIGINS)
def test_alternate_origins(table: providers.Providers, origin: str, name: str) -> None:
    found = table.by_origin(origin, "/v1/chat/completions")
    assert found is named(table, name)
    assert found.origin != origin
    assert origin in found.origins


@pytest.mark.parametrize(
    "origin",
    [
        "https://api.openai.com.evil.dev",
        "http://api.openai.com",
        "https://API.openai.com",
        "https://api.openai.com:443",
    ],
)
def test_only_the_exact_origin_is_found(table: providers.Providers, origin: str) -> None:
    assert table.by_origin(origin, "/v1/chat/completions") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1beta/models/m:generateContent", "google"),
        ("/v1beta/openai/chat/completions", "googleOpenaiCompatible"),
        ("/v1beta/openai", "googleOpenaiCompatible"),
        ("/v1beta/openai?x=1", "googleOpenaiCompatible"),
        ("/v1beta/openaix", "google"),
        ("/v1beta/%6Fpenai/chat/completions", "googleOpenaiCompatible"),
        ("//v1beta//openai/chat/completions", "googleOpenaiCompatible"),
    ],
)
def test_shared_origin_is_decided_by_path(table: providers.Providers, path: str, name: str) -> None:
    assert table.by_origin(GOOGLE, path) is named(table, name)


@pytest.mark.parametrize(("name", "method", "path", "expected"), FORMATS)
def test_format_of(table: providers.Providers, name: str, method: str, path: str, expected: str) -> None:
    assert named(table, name).format_of(method, path) == expected


def test_credential_headers(table: providers.Providers) -> None:
    assert named(table, "openai").credential_header("k") == ("authorization", "Bearer k")
    assert named(table, "anthropic").credential_header("k") == ("x-api-key", "k")
    assert named(table, "google").credential_header("k") == ("x-goog-api-key", "k")
    assert named(table, "elevenlabs").credential_header("k") == ("xi-api-key", "k")


def test_default_headers(table: providers.Providers) -> None:
    assert named(table, "anthropic").default_headers == {"anthropic-version": "2023-06-01"}
    assert named(table, "openai").default_headers == {}


def test_recorded_paths_have_the_recorded_format(table: providers.Providers) -> None:
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings are not beside the repository")
    checked = elsewhere = 0
    for file in RECORDINGS.glob("*.json"):
        recording = json.loads(file.read_bytes())
        row = table.by_origin(f"https://{recording['host']}", recording["path"])
        format_of = table.format_elsewhere if row is None else row.format_of
        family = recording["endpoint"]
        expected = "hyperbolic_images" if recording["provider"] == "hyperbolic" and "images" in family else family
        assert format_of(recording["method"], recording["path"]) == FAMILIES.get(expected, expected), file.name
        checked += 1
        elsewhere += row is None
    assert checked > 1_000 and elsewhere > 240


def test_at_other_hosts_what_is_no_known_endpoint_is_plain_http(table: providers.Providers) -> None:
    assert table.format_elsewhere("POST", "/v1/messages?beta=true") == "anthropic_messages"
    for method, path in (("GET", "/v1/messages"), ("POST", "/v1/messages/batches"), ("POST", "/v1/search")):
        assert table.format_elsewhere(method, path) == "http"


def test_hyperbolic_names_its_endpoint_in_the_singular(table: providers.Providers) -> None:
    assert named(table, "hyperbolic").format_of("POST", "/v1/image/generation") == "hyperbolic_images"
    assert named(table, "mistral").format_of("POST", "/v1/fim/completions") == "mistral_fim"


def test_every_format_of_the_table_has_a_reader() -> None:
    assert providers.FORMAT_NAMES | {providers.HTTP} == set(READERS)


def test_a_row_added_to_the_shipped_table_is_a_provider(tmp_path: Path) -> None:
    """No code: a copy of config/providers.toml with five lines more."""
    copied = tmp_path / "providers.toml"
    shipped = (REPO / "config" / "providers.toml").read_text(encoding="utf-8")
    copied.write_text(
        shipped + '\n[[provider]]\nname = "acme"\nbase = "https://api.acme.dev/openai/v1"\n'
        'origins = ["https://api.acme.dev"]\ninject_usage = true\n'
    )
    table = providers.load(copied)
    row = table.by_origin("https://api.acme.dev", "/openai/v1/chat/completions")
    assert row is not None and row is table.by_name("acme") and row.inject_usage
    assert row.credential_header("k") == ("authorization", "Bearer k")
    assert row.format_of("POST", "/openai/v1/chat/completions") == "openai_chat"
    assert row.format_of("POST", "/openai/v1/embeddings") == "openai_embeddings"
    assert row.format_of("POST", "/openai/v1/batches") == providers.UNKNOWN
    assert providers.managed_keys(table, {"acme": "sk"}) == {"acme": "sk"}
    assert len(table) == len(TABLE) + 1


MINIMAL = """
[formats.openai]
"/chat/completions" = "openai_chat"
[[provider]]
name = "acme"
base = "https://api.acme.dev/v1"
origins = ["https://api.acme.dev"]
"""


def test_a_compatible_provider_takes_one_row() -> None:
    row = named(providers.parse(tomllib.loads(MINIMAL)), "acme")
    assert row.format_of("POST", "/v1/chat/completions") == "openai_chat"
    assert row.credential_header("k") == ("authorization", "Bearer k")


SECOND = '[[provider]]\nname = "two"\nbase = "https://api.two.dev"\norigins = ["https://api.two.dev"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "colour = 1", "provider 'acme'.*colour"),
        (MINIMAL + 'credential = "basic"', "provider 'acme'.*basic"),
        (MINIMAL + 'formats = ["nope"]', r"provider 'acme'.*\[formats.nope\]"),
        (MINIMAL + 'realtime_paths = ["v1/realtime"]', "provider 'acme'.*realtime_paths.*'v1/realtime'"),
        (MINIMAL + 'path_prefixes = ["/V1"]', "provider 'acme'.*path_prefixes.*'/V1'"),
        (MINIMAL + '[provider.default_headers]\nx = "a\\nb"', "provider 'acme'.*default_headers.*'x'"),
        (MINIMAL.replace('"https://api.acme.dev"]', '"http://api.acme.dev"]'), "provider 'acme'.*exact https origin"),
        (MINIMAL.replace('"https://api.acme.dev"]', '"https://api.acme.dev:444"]'), "provider 'acme'.*exact https"),
        (MINIMAL.replace('"https://api.acme.dev"]', '"https://127.0.0.1"]'), "provider 'acme'.*exact https origin"),
        (MINIMAL.replace('["https://api.acme.dev"]', "[]"), "provider 'acme'.*origins is empty"),
        (MINIMAL.replace("acme.dev/v1", "other.dev/v1"), "provider 'acme'.*base.*must lie below"),
        (MINIMAL.replace("acme.dev/v1", "acme.dev.evil.com/v1"), "provider 'acme'.*base.*must lie below"),
        (MINIMAL.replace('name = "acme"', ""), "provider 1.*name"),
        (MINIMAL.replace('"acme"', '"a me"'), "provider 'a me'.*letters"),
        (MINIMAL.replace('"openai_chat"', '"openai_chats"'), r"\[formats.openai\].*unknown format 'openai_chats'"),
        (MINIMAL.replace('"/chat/', '"chat/'), r"\[formats.openai\].*'chat/completions' is not a pattern"),
        (MINIMAL + SECOND.replace("two.dev", "acme.dev"), "provider 'two'.*'acme' already has"),
        (MINIMAL + SECOND.replace('"two"', '"ACME"'), "provider 'ACME'.*used twice"),
        (
            '[formats.a]\n"/x" = "images"\n[formats.b]\n"/x" = "plain"\n' + SECOND + 'formats=["a","b"]',
            "'two'.*two sets",
        ),
        ("[other]", "unknown table 'other'"),
        ("[formats]", "no .*provider"),
        ("provider = 3", "no .*provider"),
        ("provider = [3]", "provider 1"),
        ("formats = 3", r"\[formats\]"),
    ],
)
def test_a_wrong_table_names_the_row(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        providers.parse(tomllib.loads(text))
    assert re.search(message, str(caught.value)), caught.value


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    with pytest.raises(ConfigurationError, match="does not exist"):
        providers.load(path)
    path.write_text("= =")
    with pytest.raises(ConfigurationError, match=r"table\.toml is not TOML"):
        providers.load(path)
    path.write_text(MINIMAL + "colour = 1")
    with pytest.raises(ConfigurationError, match=r"table.toml: provider 'acme'"):
        providers.load(path)
    path.write_text(MINIMAL)
    assert [row.name for row in providers.load(path)] == ["acme"]


def test_a_key_is_lent_to_another_row_only_for_origins_of_its_own(tmp_path: Path) -> None:
    rows = (("narrow", '"https://a.example"'), ("wide", '"https://a.example", "https://b.example"'))
    text = "".join(
        f'[[provider]]\nname = "{name}"\nbase = "https://a.example"\norigins = [{origins}]\n'
        f'path_prefixes = ["/{name}"]\nformats = []\n'
        for name, origins in rows
    )
    (tmp_path / "providers.toml").write_text(text)
    table = providers.load(tmp_path / "providers.toml")
    assert providers.managed_keys(table, {"wide": "sk-w"}) == {"narrow": "sk-w", "wide": "sk-w"}
    # b.example is no origin of the row whose key it is: the key must not be sent there.
    assert providers.managed_keys(table, {"narrow": "sk-n"}) == {"narrow": "sk-n"}
