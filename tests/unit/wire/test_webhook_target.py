"""Which URLs an endpoint may have."""

from __future__ import annotations

import pytest

from gateway.errors import ObolError
from gateway.wire.webhook_target import WebhookTarget, parse

PRIVATE = frozenset({"127.0.0.1", "localhost", "app.internal"})


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://example.com", ("https", "example.com", 443, "example.com", "/")),
        ("https://Example.com:443/a/b?c=d", ("https", "example.com", 443, "example.com", "/a/b?c=d")),
        ("HTTPS://hooks.example.com:8443/x", ("https", "hooks.example.com", 8443, "hooks.example.com:8443", "/x")),
        ("https://example.com?token=1", ("https", "example.com", 443, "example.com", "/?token=1")),
        ("http://127.0.0.1:3000/h", ("http", "127.0.0.1", 3000, "127.0.0.1:3000", "/h")),
        ("http://localhost/h", ("http", "localhost", 80, "localhost", "/h")),
        ("https://app.internal/h", ("https", "app.internal", 443, "app.internal", "/h")),
    ],
)
def test_usable_urls(url: str, target: tuple[str, str, int, str, str]) -> None:
    assert parse(url, PRIVATE) == WebhookTarget(*target)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/h", "must start with https"),
        ("ftp://example.com/h", "must be absolute"),
        ("//example.com/h", "must be absolute"),
        ("example.com/h", "must be absolute"),
        ("https:///h", "not a DNS name"),
        ("https://user:pw@example.com/h", "user name"),
        ("https://127.0.0.1@example.com/h", "user name"),
        ("https://example.com/#f", "fragment"),
        ("https://example.com/a b", "space"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("https://exämple.com/", "ASCII"),
        ("https://10.0.0.1/h", "IP address"),
        ("https://0x7f000001/h", "IP address"),
        ("https://2130706433/h", "IP address"),
        ("https://[::1]/h", "not a DNS name"),
        ("https://app.internal.:443/h", "not a DNS name"),
        ("https://db.internal/h", "special-use"),
        ("http://127.0.0.1.example.com/h", "must start with https"),
        ("https://example/h", "not a DNS name"),
        ("https://example.com:0/h", "port"),
        ("https://example.com:65536/h", "port"),
        ("https://example.com:/h", "port"),
        ("https://example.com/" + "a" * 2_048, "longer than 2048"),
    ],
)
def test_refused_urls(url: str, why: str) -> None:
    with pytest.raises(ObolError, match=why) as caught:
        parse(url, PRIVATE)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "url")
    assert url not in caught.value.message
