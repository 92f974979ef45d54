"""The gateway's own model routes: what a path says, and how a body comes to name another model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ObolError
from gateway.providers import load
from gateway.wire.dropin import OPENAI_BASES, gateway_query, route_at, route_of
from gateway.wire.formats import FORMATS
from gateway.wire.model_field import member_of, with_model

TABLE = load(Path(__file__).parents[3] / "config" / "providers.toml")


@pytest.mark.parametrize("base", OPENAI_BASES)
def test_openai_clients_append_to_any_of_these(base):
    for path in ("/chat/completions", "/chat/completions/", "/chat/completions?x=1"):
        route = route_of(base + path)
        assert route is not None and (route.format, route.suffix) == ("openai_chat", "/chat/completions")


@pytest.mark.parametrize(
    ("path", "format_name", "model"),
    [
        ("/v1/responses", "openai_responses", None),
        ("/v1/messages", "anthropic_messages", None),
        ("/v1/v1/messages", "anthropic_messages", None),
        ("/v1/messages/count_tokens?beta=true", "anthropic_count_tokens", None),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini_stream", "gemini-2.5-pro"),
        ("/v1/models/gemini-2.5-pro:countTokens", "gemini_count_tokens", "gemini-2.5-pro"),
        ("/v1alpha/models/google/gemini-2.5-pro:embedContent", "gemini_embed", "google/gemini-2.5-pro"),
        ("/v1beta/models/google%2Fgemini-2.5-pro%3AbatchEmbedContents", "gemini_embed", "google/gemini-2.5-pro"),
        ("/openai/deployments/gpt-4o/audio/speech?api-version=1", "audio_speech", "gpt-4o"),
        ("/v1/text-to-speech/21m00Tcm4TlvDq8ikWAM/stream", "elevenlabs_tts", None),
        ("/v2/chat", "cohere_v2_chat", None),
    ],
)
def test_a_path_tells_the_format(path, format_name, model):
    route = route_of(path)
    assert route is not None and (route.format, route.model) == (format_name, model)
    assert route.format in FORMATS


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/models",
        "/v1/models/gpt-4o",
        "/v1/usage",
        "/v1/requests",
        "/v1/forward",
        "/v1/connections/x/chat/completions",
        "/v1/chat/completions/x",
        "/v1beta/models/x:run",
        "/v1beta/models/:generateContent",
        "/openai/deployments/x/files",
        "/openai/deployments/a/b/chat/completions",
        "/v1/text-to-speech/../x",
    ],
)
def test_other_paths_are_none_of_ours(path):
    assert route_of(path) is None


@given(st.text(max_size=60))
def test_no_path_breaks_it(text):
    for path in (text, f"/v1/{text}", f"/v1beta/models/{text}:generateContent"):
        route = route_of(path)
        assert route is None or route.path("../x").find("/../") == -1


def test_every_route_leads_to_a_provider_that_speaks_it():
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/images/edits", "/v1/audio/translations"]
    paths += ["/v1/moderations", "/v1/messages/count_tokens", "/v1beta/models/m:countTokens", "/v1/embed", "/v2/rerank"]
    paths += ["/v1/rerank", "/v1/fim/completions", "/v1/speech-to-text", "/v1/text-to-speech/v"]
    for path in paths:
        route = route_of(path)
        assert route is not None
        urls = [row.url_of(route.api, route.path("m"), route.format) for row in TABLE]
        assert any(urls), path
        for row, url in zip(TABLE, urls, strict=True):
            if url is not None:
                found = route_at(url.removeprefix(row.origin))
                assert found is not None and found.format == route.format, url


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/v1/messages", "", ("", None, None)),
        ("/v1/messages", "beta=true", ("beta=true", None, None)),
        ("/v1beta/models/x:countTokens", "alt=sse&key=a%2Bb", ("alt=sse", "a+b", None)),
        ("/v1/chat/completions", "metadata=%7B%22a%22%3A+%22b%22%7D&x=1", ("x=1", None, '{"a": "b"}')),
        ("/v1/chat/completions", "api-version=2024&key=&x=", ("x=", "", None)),
        ("/v1/messages", "api-version=2024", ("api-version=2024", None, None)),
    ],
)
def test_what_of_a_query_is_for_the_gateway(path, query, expected):
    route = route_of(path)
    assert route is not None
    assert gateway_query(query, route) == expected


def test_metadata_twice_is_refused():
    route = route_of("/v1/messages")
    assert route is not None
    with pytest.raises(ObolError) as refused:
        gateway_query("metadata=1&metadata=2", route)
    assert (refused.value.code, refused.value.param) == ("metadata_invalid", "metadata")


# Naming another model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8) | st.just('"model":"openai/m"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "a", '"model', "é"]), inner),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "messages", '\\"model"']), JSON, max_size=3),
    st.integers(0, 3),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_only_the_model_changes(members, place, indent, plain):
    """Whatever stands beside it, and however the body is written."""
    pairs = list(members.items())
    pairs.insert(min(place, len(pairs)), ("model", "openai/m"))
    body = json.dumps(dict(pairs), indent=indent, ensure_ascii=plain).encode()
    changed = with_model(body, "m")
    assert json.loads(changed) == dict(pairs) | {"model": "m"}
    assert list(json.loads(changed)) == [name for name, _ in pairs]
    assert len(body) - len(changed) == len("openai/")


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (b'{"model":"p/m"}', b'{"model":"m"}'),
        (
            b'\xef\xbb\xbf{ "model" : "p/m" , "x":{"model":"p/m"}}',
            b'\xef\xbb\xbf{ "model" : "m" , "x":{"model":"p/m"}}',
        ),
        (b'{"m\\u006fdel":"p/m"}', b'{"m\\u006fdel":"m"}'),
        (b'{"model":"p/x","model":"p/m"}', b'{"model":"m","model":"m"}'),
        (b'{"x":1}', b'{"model":"m","x":1}'),
        (b"{}", b'{"model":"m"}'),
        (b'{"model": null}', b'{"model": "m"}'),
        (b'{"x": "\\"model\\": \\"p/m\\"", "model":"p/m"}', b'{"x": "\\"model\\": \\"p/m\\"", "model":"m"}'),
    ],
)
def test_however_the_member_is_written(body, changed):
    assert with_model(body, "m") == changed


def test_a_form_names_it_in_a_field():
    form = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="model"\r\n\r\np/m\r\n'
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\np/m\r\n--b--\r\n'
    )
    assert with_model(form, "whisper-1") == form.replace(b"p/m\r\n--b--", b"whisper-1\r\n--b--")
    with pytest.raises(ObolError) as refused:
        with_model(form, "whisper-1", "model_id")
    assert (refused.value.code, refused.value.param) == ("forward_model_invalid", "model_id")


def test_each_format_has_its_member():
    members = {name: member_of(name) for name in FORMATS}
    assert members["openai_chat"] == "model" and members["elevenlabs_tts"] == "model_id"
    assert {name for name, member in members.items() if member is None} == {
        n for n in FORMATS if n.startswith("gemini")
    }


@pytest.mark.parametrize("item", [b"[]", b"[[[[[[1]]]]]]", b'{"model":{"type":"string"}}', b'"model"'])
def test_a_large_body_that_has_the_name_often_takes_no_second(item):
    """Token by token, half a megabyte takes the best part of one."""
    items = b",".join([item] * (500_000 // len(item)))
    body = b'{ "model" : "openai/gpt-4o",  "metadata":{ "model":"x" }, "messages":[ ' + items + b" ]}"
    began_s = time.process_time()
    changed = with_model(body, "gpt-4o")
    assert time.process_time() - began_s < 0.2
    assert changed == b'{"model":"gpt-4o","metadata":{ "model":"x" },"messages":[ ' + items + b" ]}"
    twice = with_model(body[:-1] + b',"model":"openai/gpt-4o"}', "gpt-4o")
    assert twice == changed
