"""The parsers of untrusted input under fuzz: no crash, bounded answers, and no second reading of a URL."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, unquote, urlsplit

import yarl
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway import providers
from gateway.errors import ObolError
from gateway.wire import credential, metadata
from gateway.wire.target import Target, resolve

TABLE = providers.load()
bounded = settings(deadline=1000)  # ms an example: a parser that hangs fails, a busy machine does not

# Fragments that URL parsers are known to disagree about, around hosts that a provider's key may go to.
HOSTS = "api.openai.com API.openai.com evil.dev 127.0.0.1 0x7f.1 2130706433 [::1] localhost xn--"
DELIMITERS = ". @ : 443 80 \\ # ? ; %40 %2f %23 %5c %00 %2e &"
HOMOGRAPHS = "\u3002 \uff0e \u2100 \u0430 \u212a \xad"
GOOD_HOST = st.sampled_from(["api.openai.com", "generativelanguage.googleapis.com", "api.acme.dev"])
MIXED_HOST = st.lists(
    st.sampled_from([*HOSTS.split(), *DELIMITERS.split(), *HOMOGRAPHS.split(), "\t", " "]), min_size=1, max_size=5
).map("".join)
AUTHORITY = GOOD_HOST | MIXED_HOST | st.builds("".join, st.tuples(GOOD_HOST, MIXED_HOST))
SEGMENTS = "/ // v1 chat completions messages openai v1beta .. . %2e %2f %5c %25 x https:// :generateContent"
PATH_DELIMITERS = "? & = u= key= metadata= # @ \\ ; % %3f"
WORD = st.sampled_from(["v1", "chat", "completions", "messages", "openai", "v1beta", "x", "%2f", "?", "key=k", "&a=b"])
MIXED = st.sampled_from([*SEGMENTS.split(), *PATH_DELIMITERS.split(), "\t", " ", "\u212a"])
PATH = st.lists(WORD, max_size=5).map("/".join) | st.lists(MIXED, max_size=10).map("".join)
SCHEME = st.sampled_from(["https://"] * 12 + ["HTTPS://", "http://", "https:/", "https:", "//", "", "ftp://"])
URL = st.builds("{}{}/{}".format, SCHEME, AUTHORITY, PATH)
FORM = st.sampled_from(
    ["/v1/forward?u={}", "/v1/forward/?u={}", "/forward?u={}", "/v1/forward/openai?u={}", "/v1/forward/a/b?x=1&u={}"]
)


def attempt(raw_target: str) -> Target[providers.Provider] | None:
    try:
        return resolve(raw_target, TABLE)
    except ObolError as error:
        assert error.code in ("forward_target_missing", "forward_target_invalid", "metadata_invalid")
        return None


def assert_unambiguous(target: Target[providers.Provider]) -> None:
    """What was resolved is one URL to everybody, and a provider is at one of its own origins."""
    url = target.origin + target.path
    standard, other = urlsplit(url), yarl.URL(url, encoded=True)
    assert standard.scheme == other.scheme == target.scheme == "https"
    assert standard.hostname == other.host == target.host
    assert standard.port in (None, 443) and other.port == target.port == 443
    assert standard.username is None and other.user is None
    assert standard.fragment == other.fragment == ""
    assert target.path.startswith("/") and not target.path.startswith("//")
    assert target.path.isascii() and target.path.isprintable() and " " not in target.path
    assert yarl.URL(url).raw_path.count("/") == target.bare_path.count("/"), "a dot segment was left"
    if target.provider is not None:
        assert target.origin in target.provider.origins


@bounded
@given(st.text(max_size=200))
def test_any_text_is_a_target_or_an_error(text: str) -> None:
    attempt(text)
    attempt("/v1/forward" + text)
    for form in (
        "{}/v1/models",
        "https://{}",
        "https://api.acme.dev{}",
        "https://api.acme.dev/{}",
        "https://api.acme.dev/?{}",
    ):
        for target in (
            attempt("/v1/forward?u=" + form.format(text)),
            attempt("/v1/forward/https/" + form.format(text).removeprefix("https://")),
        ):
            if target:
                assert_unambiguous(target)


@settings(max_examples=1000, deadline=1000)
@given(FORM, URL, st.booleans())
@example("/v1/forward?u={}", "https://api.openai.com@evil.dev/", False)
@example("/v1/forward?u={}", "https://evil.dev\\@api.openai.com/", True)
@example("/v1/forward?u={}", "https://evil.dev#@api.openai.com/", True)
def test_the_host_is_the_one_other_parsers_see(form: str, url: str, encode: bool) -> None:
    target = attempt(form.format(quote(url, safe="") if encode else url))
    if target is None:
        return
    assert_unambiguous(target)
    value = url if encode else url.partition("&")[0]  # a raw & ends the query parameter, in every query parser
    assert target.host == urlsplit(value).hostname == yarl.URL(value).host


@bounded
@given(st.sampled_from(sorted({o for row in TABLE for o in row.origins})), PATH, st.booleans())
def test_a_known_host_is_never_left(origin: str, path: str, encode: bool) -> None:
    url = f"{origin}/{path}"
    target = attempt("/v1/forward?u=" + (quote(url, safe="") if encode else url))
    if target is not None:
        assert target.origin == origin
        assert target.provider is None or origin in target.provider.origins


@bounded
@given(PATH)
def test_format_of_is_total_and_survives_respelling(path: str) -> None:
    for row in TABLE:
        name = row.format_of("POST", "/" + path)
        assert name in {*providers.FORMAT_NAMES, providers.UNKNOWN}
        assert row.format_of("GET", "/" + path) == providers.PLAIN


@bounded
@given(st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/audio/speech"]), st.data())
def test_a_metered_path_is_metered_in_every_spelling(path: str, data: st.DataObject) -> None:
    row = TABLE.by_name("openai")
    assert row is not None
    spelled = "".join(
        data.draw(st.sampled_from([character, f"%{ord(character):02x}", character.upper()]))
        if character != "/"
        else data.draw(st.sampled_from(["/", "//", "%2F"]))
        for character in path
    )
    assert row.format_of("POST", spelled) == row.format_of("POST", path) != providers.PLAIN


@bounded
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: base64.b64encode(raw).decode()))
def test_any_text_is_a_credential_or_an_error(text: str) -> None:
    for headers in ({"authorization": text}, {"authorization": f"Bearer {text}"}, {"x-api-key": text}):
        try:
            found = credential.parse(headers.get, None)
        except ObolError as error:
            assert error.code in ("unauthorized", "invalid_request")
        else:
            assert found.secret_key.isprintable()
            assert found.mode in ("merchant", "meter_only", "customer", "billing_disabled")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("secret_key", "connection_secret", "customer_profile_secret", "connection_id", "customer_id", "product_secret"),
    *("meter_secret", "meter_slug", "meter_id", "provider_key", "disable_billing", "plan_id"),
]


@bounded
@given(st.dictionaries(st.sampled_from(FIELDS), st.just("canary-1") | st.just("canary-2") | JSON, max_size=8))
def test_any_token_is_a_credential_or_an_error_without_echo(fields: dict[str, object]) -> None:
    text = base64.b64encode(json.dumps(fields).encode()).decode()
    try:
        found = credential.decode(text)
    except ObolError as error:
        assert error.code in ("unauthorized", "invalid_request")
        assert "canary" not in error.message
    else:
        assert found.secret_key == fields["secret_key"]
        assert "canary" not in repr(found)
        assert not found.disable_billing or (found.customer and found.meter)


@bounded
@given(st.dictionaries(st.text(max_size=20), JSON, max_size=5), st.text(max_size=50))
def test_metadata_is_valid_or_an_error(pairs: dict[str, object], text: str) -> None:
    for attempted in (json.dumps(pairs), text):
        try:
            found = metadata.parse([("x-lava-metadata", attempted), (f"x-lava-metadata-{text}", text)], attempted)
        except ObolError as error:
            assert error.code == "metadata_invalid"
        else:
            assert metadata.validate(found) == found


@bounded
@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20), st.text(max_size=40))
def test_a_percent_encoded_target_means_the_raw_one(segment: str, value: str) -> None:
    """Encoding a whole valid URL once never changes what is asked for."""
    url = f"https://api.acme.dev/{segment}?q={quote(value, safe='')}"
    raw, encoded = attempt("/v1/forward?u=" + url), attempt("/v1/forward?u=" + quote(url, safe=""))
    assume(raw is not None)
    assert raw == encoded
    assert unquote(raw.query if raw else "") == f"q={value}"
