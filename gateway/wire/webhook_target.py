"""Where a webhook goes: an endpoint's URL, read the way the gateway reads its targets - refused where two parsers could
read it differently, never normalised. Pure."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

import msgspec

from gateway.errors import ObolError
from gateway.wire.target import host_fault

URL_MAX_CHARACTERS = 2_048
_PORTS = {"https": 443, "http": 80}
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)


class WebhookTarget(msgspec.Struct, frozen=True):
    scheme: str
    host: str
    port: int
    host_header: str
    path: str
    """The request target: path and query as given, at least "/"."""


def parse(url: str, private_hosts: AbstractSet[str]) -> WebhookTarget:
    """Read `url`: https to a public DNS name, or http too where its host is one of `private_hosts`.

    Raise ObolError `invalid_request` with param "url", which never quotes it: receivers put secrets into their URLs.
    """
    if len(url) > URL_MAX_CHARACTERS:
        raise _invalid(f"is longer than {URL_MAX_CHARACTERS} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _invalid("has a space, a backslash, a control character or one outside ASCII; percent-encode it")
    found = _URL.fullmatch(url)
    if found is None:
        raise _invalid("must be absolute, start with https:// and have no fragment (#)")
    scheme, authority, path = found[1].lower(), found[2].lower(), found[3]
    if "@" in authority:
        raise _invalid("has a user name or password (@)")
    host, colon, port = authority.partition(":")
    _check_host(scheme, host, private_hosts)
    if colon and not (_PORT.fullmatch(port) and int(port) <= 65_535):
        raise _invalid("has a port that is no number from 1 to 65535")
    number = int(port) if colon else _PORTS[scheme]
    header = host if number == _PORTS[scheme] else f"{host}:{number}"
    return WebhookTarget(scheme, host, number, header, path if path.startswith("/") else "/" + path)


def _check_host(scheme: str, host: str, private_hosts: AbstractSet[str]) -> None:
    if host in private_hosts:
        return
    if scheme != "https":
        raise _invalid("must start with https://; http:// is for hosts in webhook_private_hosts")
    fault = host_fault(host)
    if fault is not None:
        raise _invalid(fault)


def _invalid(what: str) -> ObolError:
    return ObolError("invalid_request", f"url {what}", param="url")
