"""The target parser under fuzz. Oracles: urllib, yarl and llhttp see the host that was accepted."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from urllib.parse import quote, urlsplit

import httptools
import yarl
from fuzzing import Mutator

from gateway import providers
from gateway.errors import ObolError
from gateway.wire.target import MAX_TARGET_BYTES, Target, resolve

VECTORS = Path(__file__).parents[2].parent / "shared" / "wire" / "url_vectors.json"
TABLE = providers.load()
CODES = ("forward_target_missing", "forward_target_invalid", "metadata_invalid")
NAMES = {*providers.FORMAT_NAMES, providers.UNKNOWN}
ALLOWED_HTTP = frozenset({"http://127.0.0.1:9000"})

SEEDS = [
    b"/v1/forward?u=https://api.openai.com/v1/chat/completions",
    b"/v1/forward/?u=https://api.openai.com/v1chat/completions",
    b"/v1/forward/?u=https%3A%2F%2Fapi.openai.com%2Fv1chat/completions",
    b"/v1/forward/chat/completions?u=https%3A%2F%2Fapi.openai.com%2Fv1%2F",
    b"/v1/forward/files?limit=2&u=https://api.openai.com/v1",
    b"/v1/forward/https/api.anthropic.com/v1/messages?beta=true",
    b"/forward?u=https://api.anthropic.com/v1/v1/messages",
    b"/v1/forward?u=https://generativelanguage.googleapis.com/v1beta/models/g:streamGenerateContent?alt=sse&key=k",
    b"/v1/forward?metadata=%7B%22a%22%3A%22b%22%7D&u=https%3A%2F%2Fapi.acme.dev%2Fa%3Fb%3Dc%26d%3De&f=g",
    b"/v1/forward?u=http://127.0.0.1:9000/v1/models",
    b"/v1/forward?u=https://api.acme.dev:443/",
]
WORDS = [
    *b"api.openai.com API.openai.com evil.dev 127.0.0.1 0x7f.1 2130706433 [::1] [::ffff:1.2.3.4] localhost".split(),
    *b"xn-- xn--a .onion metadata.google.internal http://127.0.0.1:9000 https:// HTTPS:// http:// // https: ftp://".split(),
    *b". .. @ : 443 :443 :80 :0443 \\ # ? ; & = u= &u= ?u= key= &key= metadata= &metadata= % %%".split(),
    *b"%2e %2E%2e %252e %2f %2F %5c %00 %0a %40 %3a %23 %3f %25 %ff %u002e %c0%ae /. /.. /./ /%2e%2e/ ;/..;".split(),
    *b"/v1/forward /forward /v1/forward/ /openai /v1 /chat/completions /v1/messages /models/m:generateContent".split(),
    *(b"\t", b" ", b"\r\n", b"\x00", b"\x7f", b"\x85", b"\xff"),
    *("\u3002 \uff0e \u2100 \u0430 \u212a \xad \u2024 \uff0f \u2044 \u0131 \uff11 \u200b \u202e".encode().split()),
]


def _seeds() -> list[bytes]:
    """Ours, and what clients were observed to send where the recordings are there."""
    if not VECTORS.is_file():
        return SEEDS
    return SEEDS + [one["request_target"].encode() for one in json.loads(VECTORS.read_text())]


_raw = Mutator(_seeds(), WORDS, max_bytes=MAX_TARGET_BYTES + 50)
_urls = Mutator([seed.partition(b"u=")[2] for seed in SEEDS if b"u=https:" in seed], WORDS)
FORMS = ("/v1/forward?u={}", "/v1/forward/openai?u={}", "/v1/forward/a/b?x=1&u={}", "/v1/forward?metadata={{}}&u={}")


def make(random: Random) -> bytes:
    """A request line's target. Half of them hold one mutated URL, encoded, so that one knows what was asked for."""
    if random.random() < 0.6:
        return _raw(random)
    form = FORMS[int(random.random() * len(FORMS))]
    return form.format(quote(_urls(random).replace(b"u=", b""), safe="")).encode()


def check(data: bytes, random: Random) -> str:
    text = data.decode("utf-8", "surrogateescape")
    try:
        target = resolve(text, TABLE, allowed_http_origins=ALLOWED_HTTP)
    except ObolError as error:
        assert error.code in CODES, error.code
        assert len(error.message) < 500
        return error.code
    _check_one_url(target)
    _check_asked_for(target, text)
    _check_again(target)
    assert TABLE.names and (target.provider is None or target.provider.format_of("POST", target.path) in NAMES)
    return "a provider" if target.provider else target.scheme


def _check_one_url(target: Target[providers.Provider]) -> None:
    """What was resolved is one URL to everybody, and a provider is at one of its own origins."""
    url = target.origin + target.path
    standard, other, third = urlsplit(url), yarl.URL(url, encoded=True), httptools.parse_url(url.encode())
    assert standard.hostname == other.host == third.host.decode() == target.host
    assert standard.scheme == other.scheme == target.scheme
    assert other.port == target.port == (standard.port or 443) == (third.port or 443)
    assert standard.username is None and other.user is None and third.userinfo is None
    assert standard.fragment == other.fragment == "" and third.fragment is None
    assert target.scheme == "https" or target.origin in ALLOWED_HTTP
    path = target.path
    assert path.startswith("/") and not path.startswith("//")
    assert path.isascii() and path.isprintable() and " " not in path and "#" not in path and "\\" not in path
    assert yarl.URL(url).raw_path.count("/") == target.bare_path.count("/"), "a dot segment was left"
    if target.provider is not None:
        assert target.origin in target.provider.origins
        names = [parameter.partition("=")[0] for parameter in target.query.split("&")]
        assert target.provider.credential_query not in names, "a credential would be sent in the query"


def _check_asked_for(target: Target[providers.Provider], text: str) -> None:
    """Nobody else would have gone to another host for the value of `u` as it was sent."""
    path, _, query = text.partition("?")
    if not query.startswith("u=") or "/forward/http" in path:  # the target stands in the path, a `u` is its own
        return
    value = query[2:].partition("&")[0]
    if not value.lower().startswith(("https://", "http://")):
        return
    assert urlsplit(value).hostname == yarl.URL(value, encoded=True).host == target.host


def _check_again(target: Target[providers.Provider]) -> None:
    """What was resolved may be asked for again, and is at the same origin."""
    asked = "/v1/forward?u=" + quote(target.origin + target.path, safe="")
    if len(asked) > MAX_TARGET_BYTES or "metadata=" in target.query:
        return
    again = resolve(asked, TABLE, allowed_http_origins=ALLOWED_HTTP)
    assert (again.origin, again.host, again.port) == (target.origin, target.host, target.port)
