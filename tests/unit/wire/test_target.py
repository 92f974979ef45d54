"""The target of a request line: what real clients send, and what must be refused."""

from __future__ import annotations

import pytest

from gateway import providers
from gateway.errors import ObolError
from gateway.wire.target import MAX_TARGET_BYTES, Target, resolve

TABLE = providers.load()
FORWARD = "/v1/forward?u="
GEMINI = "https://generativelanguage.googleapis.com"
STREAM = f"{GEMINI}/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
CHAT = "https://api.openai.com/v1/chat/completions"
LOCAL = "http://127.0.0.1:9000"


def url(raw_target: str) -> str:
    target = resolve(raw_target, TABLE)
    return target.origin + target.path


# Request targets as real clients were observed to send them; the letter groups those that mangle the base URL alike.
OBSERVED = [
    ("A openai-python before 3.20, AI SDK, litellm", FORWARD + CHAT, CHAT),
    ("B openai-python 3.20 and later", "/v1/forward/?u=https://api.openai.com/v1chat/completions", CHAT),
    ("B with a slash last in the base", "/v1/forward/?u=https://api.openai.com/v1/chat/completions", CHAT),
    ("B, encoded base", "/v1/forward/?u=https%3A%2F%2Fapi.openai.com%2Fv1chat/completions", CHAT),
    (
        "B files.list",
        "/v1/forward/?u=https%3A%2F%2Fapi.openai.com%2Fv1files&limit=2",
        "https://api.openai.com/v1/files?limit=2",
    ),
    ("half encoded", FORWARD + "https%3A%2F%2Fapi.openai.com%2Fv1/chat/completions", CHAT),
    ("C openai-node 7.25 and later", "/v1/forward/chat/completions?u=https%3A%2F%2Fapi.openai.com%2Fv1%2F", CHAT),
    (
        "C files.list",
        "/v1/forward/files?u=https%3A%2F%2Fapi.openai.com%2Fv1&limit=2",
        "https://api.openai.com/v1/files?limit=2",
    ),
    (
        "C parameters first",
        "/v1/forward/files?limit=2&u=https://api.openai.com/v1",
        "https://api.openai.com/v1/files?limit=2",
    ),
    ("C cohere-js", "/v1/forward/v2/chat?u=https://api.cohere.com", "https://api.cohere.com/v2/chat"),
    (
        "A' list call",
        FORWARD + "https%3A%2F%2Fapi.openai.com%2Fv1%2Ffiles&limit=2",
        "https://api.openai.com/v1/files?limit=2",
    ),
    ("A anthropic", FORWARD + "https://api.anthropic.com/v1/messages", "https://api.anthropic.com/v1/messages"),
    (
        "A' anthropic",
        FORWARD + "https%3A%2F%2Fapi.anthropic.com%2Fv1%2Fmessages",
        "https://api.anthropic.com/v1/messages",
    ),
    (
        "A' models.list",
        FORWARD + "https%3A%2F%2Fapi.anthropic.com%2Fv1%2Fmodels&limit=1",
        "https://api.anthropic.com/v1/models?limit=1",
    ),
    (
        "A2 google-genai-js, query inside and outside",
        FORWARD
        + "https%3A%2F%2Fgenerativelanguage.googleapis.com%2Fv1beta%2Fmodels"
        + "%2Fgemini-x%3AstreamGenerateContent%3Falt%3Dsse&alt=sse",
        STREAM,
    ),
    ("A2 AI SDK google", FORWARD + STREAM, STREAM),
    (
        "A2 anthropic beta",
        FORWARD + "https://api.anthropic.com/v1/messages?beta=true",
        "https://api.anthropic.com/v1/messages?beta=true",
    ),
    (
        "C2 google-genai-python",
        f"/v1/forward/v1beta/models/gemini-x:streamGenerateContent?alt=sse?u={GEMINI}",
        STREAM,
    ),
    ("E cohere-python", "/forward?u=https://api.cohere.com/v2/chat", "https://api.cohere.com/v2/chat"),
    (
        "a voice named v1",
        FORWARD + "https://api.elevenlabs.io/v1/text-to-speech/v1",
        "https://api.elevenlabs.io/v1/text-to-speech/v1",
    ),
    (
        "groq-python",
        FORWARD + "https://api.groq.com/openai/v1/chat/completions",
        "https://api.groq.com/openai/v1/chat/completions",
    ),
    ("label", "/v1/forward/openai?u=" + CHAT, CHAT),
]

RULES = [
    ("label, slash last", "/v1/forward/OpenAI/?u=" + CHAT, CHAT),
    ("label that is no provider, after an endpoint", "/v1/forward/my-app?u=" + CHAT, CHAT),
    (
        "a segment after a base is appended",
        "/v1/forward/models?u=https://api.openai.com/v1",
        "https://api.openai.com/v1/models",
    ),
    (
        "full URL and default_query",
        "/v1/forward/chat/completions?u=https%3A%2F%2Fapi.openai.com%2Fv1%2Fchat%2Fcompletions",
        CHAT,
    ),
    ("doubled version", FORWARD + "https://api.anthropic.com/v1/v1/messages", "https://api.anthropic.com/v1/messages"),
    (
        "doubled base",
        FORWARD + "https://api.groq.com/openai/v1/openai/v1/chat/completions",
        "https://api.groq.com/openai/v1/chat/completions",
    ),
    (
        "lost slash after a base that ends in openai",
        f"/v1/forward/?u={GEMINI}/v1beta/openaichat/completions",
        f"{GEMINI}/v1beta/openai/chat/completions",
    ),
    (
        "no repair at an unknown host",
        FORWARD + "https://api.acme.dev/v1chat/v1/v1",
        "https://api.acme.dev/v1chat/v1/v1",
    ),
    ("a word that only starts so", FORWARD + "https://api.openai.com/v1chatter", "https://api.openai.com/v1chatter"),
    (
        "unknown parameters re-attached in order",
        "/v1/forward?b=2&u=https://api.acme.dev/s?a=1&c=3&metadata=%7B%7D&a=1",
        "https://api.acme.dev/s?a=1&b=2&c=3&a=1",
    ),
    ("repeated raw parameters stay", FORWARD + "https://api.acme.dev/s?t=1&t=1", "https://api.acme.dev/s?t=1&t=1"),
    (
        "encoded target keeps its own u",
        FORWARD + "https%3A%2F%2Fapi.acme.dev%2Fs%3Fx%3D1%26u%3D2",
        "https://api.acme.dev/s?x=1&u=2",
    ),
    ("raw encoding is kept", FORWARD + "https://api.acme.dev/a%2Fb%20c?q=%26", "https://api.acme.dev/a%2Fb%20c?q=%26"),
    ("encoded once, decoded once", FORWARD + "https%3A%2F%2Fapi.acme.dev%2Fa%252Fb", "https://api.acme.dev/a%2Fb"),
    ("encoder that leaves slashes", FORWARD + "https%3A//api.acme.dev/a%252Fb", "https://api.acme.dev/a%2Fb"),
    (
        "appended part keeps its encoding",
        FORWARD + "https%3A%2F%2Fapi.acme.dev%2Fv1/a%2Fb",
        "https://api.acme.dev/v1/a%2Fb",
    ),
    ("port 443", FORWARD + "https://api.openai.com:443/v1/models", "https://api.openai.com/v1/models"),
    ("upper case", FORWARD + "HTTPS://API.OpenAI.com/v1/models", "https://api.openai.com/v1/models"),
    ("no path", FORWARD + "https://api.openai.com", "https://api.openai.com/"),
    ("query without path", FORWARD + "https://api.acme.dev?a=1", "https://api.acme.dev/?a=1"),
    (
        "path style",
        "/v1/forward/https/api.mistral.ai/v1/chat/completions",
        "https://api.mistral.ai/v1/chat/completions",
    ),
    (
        "path style with a query",
        "/v1/forward/https/api.openai.com/v1/files?limit=2&u=x&metadata={}",
        "https://api.openai.com/v1/files?limit=2&u=x",
    ),
]


@pytest.mark.parametrize(("_shape", "raw_target", "expected"), OBSERVED + RULES)
def test_resolved(_shape: str, raw_target: str, expected: str) -> None:
    assert url(raw_target) == expected


def test_parts() -> None:
    target = resolve(FORWARD + STREAM, TABLE)
    assert (target.scheme, target.host, target.port) == ("https", "generativelanguage.googleapis.com", 443)
    assert target.bare_path == "/v1beta/models/gemini-x:streamGenerateContent"
    assert target.query == "alt=sse"
    assert target.provider is TABLE.by_name("google")
    assert resolve(FORWARD + "https://api.acme.dev/x", TABLE).provider is None
    assert resolve(FORWARD + "https://api.acme.dev/x", TABLE).query == ""


def test_provider_of_a_repaired_path() -> None:
    target = resolve(f"/v1/forward/?u={GEMINI}/v1beta/openaichat/completions", TABLE)
    assert target.provider is TABLE.by_name("googleOpenaiCompatible")


MISSING = [
    "/v1/forward",
    "/v1/forward/",
    "/v1/forward?limit=2",
    "/v1/forward/v1/chat/completions",
    FORWARD,
    "/v1/forward?xu=1",
]


@pytest.mark.parametrize("raw_target", MISSING)
def test_missing(raw_target: str) -> None:
    with pytest.raises(ObolError, match=r"parameter u.*Example: /v1/forward") as caught:
        resolve(raw_target, TABLE)
    assert (caught.value.code, caught.value.param) == ("forward_target_missing", "u")


REFUSED = [
    ("http://api.openai.com/v1", "start with https"),
    ("ftp://api.openai.com/v1", "start with https"),
    ("api.openai.com/v1", "start with https"),
    ("//api.openai.com/v1", "start with https"),
    ("https:/api.openai.com/v1", "start with https"),
    ("https:api.openai.com/v1", "start with https"),
    ("https://", "no host"),
    ("https:///v1", "no host"),
    ("https://api.openai.com@evil.dev/v1", "user name"),
    ("https://user:secret@api.openai.com/v1", "user name"),
    ("https%3A%2F%2Fapi.openai.com%40evil.dev%2Fv1", "user name"),
    ("https://api.openai.com%40evil.dev/v1", "percent-encoded character in its host"),
    ("https://api%2eopenai%2ecom/v1", "percent-encoded character in its host"),
    ("https%3A%2F%2Fapi%252eopenai.com%2Fv1", "percent-encoded character in its host"),
    ("https%253A%252F%252Fapi.openai.com", "start with https"),
    ("https://api.openai.com%00.evil.dev/", "percent-encoded character in its host"),
    ("https://api.openai.com:444/v1", "port"),
    ("https://api.openai.com:0443/v1", "port"),
    ("https://api.openai.com:/v1", "port"),
    ("https://api.openai.com:443:443/v1", "port"),
    ("https://127.0.0.1/", "IP address"),
    ("https://2130706433/", "IP address"),
    ("https://0x7f000001/", "IP address"),
    ("https://0x7f.0.0.1/", "IP address"),
    ("https://0177.0.0.1/", "IP address"),
    ("https://127.1/", "IP address"),
    ("https://127.0.0.1./", "IP address"),
    ("https://0x/", "IP address"),
    ("https://[::1]/", "IP address"),
    ("https://[::ffff:127.0.0.1]/", "IP address"),
    ("https://[::1%25eth0]/", "IP address|percent-encoded"),
    ("https://api.openai.com./v1", "not a DNS name"),
    ("https://api..openai.com/v1", "not a DNS name"),
    ("https://.openai.com/v1", "not a DNS name"),
    ("https://-a.openai.com/v1", "not a DNS name"),
    ("https://a_b.openai.com/v1", "not a DNS name"),
    ("https://localhost/v1", "not a DNS name"),
    ("https://foo.0x7f/", "not a DNS name"),
    ("https://foo.1/", "not a DNS name"),
    ("https://xn--pi-7ba.openai.com/v1", "not a DNS name"),
    ("https://api.openai.com;evil.dev/", "not a DNS name"),
    ("https://api.openai.com,evil.dev/", "not a DNS name"),
    ("https://" + "a." * 200 + "dev/", "not a DNS name"),
    ("https://app.localhost/", "special-use"),
    ("https://metadata.google.internal/", "special-use"),
    ("https://localhost.localdomain/", "special-use"),
    ("https://nas.lan/", "special-use"),
    ("https://017700000001/", "IP address"),
    ("https://0X7F.0.0.1/", "IP address"),
    ("https://%31%32%37.0.0.1/", "percent-encoded character in its host"),
    ("https%3A%2F%2F%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1%2F", "outside ASCII"),  # full-width digits
    ("https%3A%2F%2F127%E3%80%820%E3%80%820%E3%80%821%2F", "outside ASCII"),  # ideographic full stops
    ("https://[fe80::1%25lo]/", "percent-encoded"),
    ("https://[::ffff:7f00:1]:443/", "IP address"),
    ("https://1.0.0.127.in-addr.arpa/", "special-use"),
    ("https://evil.dev\\@api.openai.com/", "backslash"),
    ("https%3A%2F%2Fevil.dev%5C%40api.openai.com%2F", "backslash"),
    ("https://evil.dev#@api.openai.com/", "fragment"),
    ("https%3A%2F%2Fevil.dev%23%40api.openai.com%2F", "fragment"),
    ("https://api.openai.com/v1 /x", "space or control"),
    ("https://api.openai.com/v1\t", "space or control"),
    ("https://api.openai.com/v1\r\nHost: evil.dev", "space or control"),
    ("https%3A%2F%2Fapi.openai.com%2Fv1%0D%0AHost%3A%20evil.dev", "space or control"),
    ("https%3A%2F%2Fapi.openai.com%2Fa%20b", "space or control"),
    ("https://аpi.openai.com/v1", "outside ASCII"),  # a Cyrillic a
    ("https%3A%2F%2F%D0%B0pi.openai.com%2Fv1", "outside ASCII"),
    ("https%3A%2F%2F%FFpi.openai.com%2Fv1", "UTF-8"),
    ("https://api.openai.com/" + "a" * MAX_TARGET_BYTES, "longer than"),
    ("https://api.openai.com/v1/../admin", r"\. or \.\."),
    ("https://api.openai.com/v1/./x", r"\. or \.\."),
    ("https://api.openai.com/v1/..", r"\. or \.\."),
    ("https://api.openai.com/v1/%2e%2E/admin", r"\. or \.\."),
    ("https://api.openai.com/v1/.%2e/admin", r"\. or \.\."),
    ("https://api.openai.com/v1/..%2fadmin", r"\. or \.\."),
    ("https://api.openai.com/v1/..%5cadmin", r"\. or \.\."),
    ("https://api.openai.com/v1/%252e%252e/admin", r"\. or \.\."),
    ("https://api.openai.com/v1/..;x/admin", r"\. or \.\."),
    ("https://api.openai.com/v1/x%0d%0ay", "encoded control"),
    ("https://api.openai.com/v1/%2525252525", "too many times"),
    ("https://api.openai.com//evil.dev/v1", "empty first path segment"),
    ("https://api.openai.com/v1&u=https://evil.dev/", "given twice"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED)
@pytest.mark.parametrize("form", [FORWARD + "{}", "/v1/forward/?limit=1&u={}", "/v1/forward/openai?u={}"])
def test_refused(form: str, value: str, reason: str) -> None:
    with pytest.raises(ObolError, match=reason) as caught:
        resolve(form.format(value), TABLE)
    assert (caught.value.code, caught.value.param) == ("forward_target_invalid", "u")
    assert "Example: /v1/forward?u=https://api.openai.com/v1/chat/completions" in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "raw_target",
    [
        "/v1/forward/https/127.0.0.1/x",
        "/v1/forward/https/evil.dev@api.openai.com/x",
        "/v1/forward/https/api.openai.com%2f.evil.dev/x",
        "/v1/forward/https/",
        "/v1/forward/http/api.openai.com/v1",
        "/v1/forward/https/api.openai.com/v1/../x",
        "/v1/forwards?u=" + CHAT,
        "/v2/forward?u=" + CHAT,
        "",
    ],
)
def test_refused_paths(raw_target: str) -> None:
    with pytest.raises(ObolError) as caught:
        resolve(raw_target, TABLE)
    assert caught.value.code == "forward_target_invalid"


def test_remainder_cannot_change_the_host() -> None:
    target = resolve("/v1/forward//evil.dev/x?u=https://api.openai.com/v1", TABLE)
    assert (target.host, target.path) == ("api.openai.com", "/v1//evil.dev/x")
    with pytest.raises(ObolError, match="empty first path segment"):
        resolve("/v1/forward//evil.dev/x?u=https://api.openai.com", TABLE)


class TestPlainHttp:
    @pytest.mark.parametrize("raw", [FORWARD + LOCAL + "/v1/x?a=1", "/v1/forward/http/127.0.0.1:9000/v1/x?a=1"])
    def test_allowed_origin(self, raw: str) -> None:
        target = resolve(raw, TABLE, allowed_http_origins={LOCAL})
        assert (target.scheme, target.host, target.port, target.origin) == ("http", "127.0.0.1", 9000, LOCAL)
        assert (target.path, target.provider) == ("/v1/x?a=1", None)

    @pytest.mark.parametrize("value", ["http://127.0.0.1:9001/", "http://127.0.0.1/", "http://x@127.0.0.1:9000/"])
    def test_only_exactly_that_origin(self, value: str) -> None:
        with pytest.raises(ObolError, match="http:// is not allowed"):
            resolve(FORWARD + value, TABLE, allowed_http_origins={LOCAL})

    def test_ipv6_and_default_port(self) -> None:
        allowed = {"http://[::1]:9000", "http://gateway.test"}
        target = resolve(FORWARD + "http://[::1]:9000/x", TABLE, allowed_http_origins=allowed)
        assert (target.host, target.port) == ("::1", 9000)
        assert resolve(FORWARD + "http://gateway.test/x", TABLE, allowed_http_origins=allowed).port == 80


class TestQueryCredential:
    @pytest.mark.parametrize(
        ("query", "left"),
        [
            ("?key=canary", ""),
            ("?key=canary&alt=sse", "alt=sse"),
            ("?alt=sse&key=canary", "alt=sse"),
            ("?alt=sse&%6bey=canary&key=other", "alt=sse"),
            ("?alt=sse&monkey=1&key=canary", "alt=sse&monkey=1"),
        ],
    )
    @pytest.mark.parametrize("path", ["/v1beta/models/m:generateContent", "/v1beta/openai/chat/completions"])
    def test_google_key_is_taken_out(self, path: str, query: str, left: str) -> None:
        target = resolve(FORWARD + GEMINI + path + query, TABLE)
        assert target.query_key == "canary"
        assert target.query == left
        assert "canary" not in repr(target) + str(target) + repr(target.__rich_repr__())

    def test_key_of_an_encoded_target_and_of_the_gateway_url(self) -> None:
        encoded = "https%3A%2F%2Fgenerativelanguage.googleapis.com%2Fv1%2Fx%3Fkey%3Da%252Bb"
        assert resolve(FORWARD + encoded, TABLE).query_key == "a+b"
        assert resolve(f"/v1/forward/v1/x?key=a%2Bb?u={GEMINI}", TABLE).query_key == "a+b"

    def test_other_hosts_keep_their_key(self) -> None:
        target = resolve(FORWARD + "https://api.acme.dev/x?key=1", TABLE)
        assert (target.query, target.query_key) == ("key=1", None)

    def test_no_key(self) -> None:
        assert resolve(FORWARD + GEMINI + "/v1/x?monkey=1", TABLE).query_key is None


class TestMetadata:
    def test_taken_out_and_decoded(self) -> None:
        raw = FORWARD + "https%3A%2F%2Fapi.acme.dev%2Fx&metadata=%7B%22a%22%3A%22b+c%22%7D&y=1"
        target: Target[providers.Provider] = resolve(raw, TABLE)
        assert target.metadata == '{"a":"b c"}'
        assert target.query == "y=1"

    def test_the_targets_own_stays(self) -> None:
        target = resolve(FORWARD + "https%3A%2F%2Fapi.acme.dev%2Fx%3Fmetadata%3D1", TABLE)
        assert (target.query, target.metadata) == ("metadata=1", None)

    def test_twice(self) -> None:
        with pytest.raises(ObolError, match="given twice") as caught:
            resolve(FORWARD + "https://api.acme.dev/x&metadata=1&metadata=2", TABLE)
        assert caught.value.code == "metadata_invalid"
