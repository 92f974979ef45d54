"""Which upstream URL a request line asks for: `/v1/forward?u=<url>` and what real clients make of it. Pure.

The clients' SDKs append their path to a base URL that has a query, each in its own way. The rule that serves them:

1. The target is the value of the first `u=` of the raw query. It is taken as it stands when it starts with
   `https://`, else it is percent-decoded once - up to the first literal `/` or `?`, because what follows was
   appended by a client after the encoding.
2. Other parameters of the gateway's URL are appended to the target's query in their order, but `metadata`, which
   is the gateway's own, and those that an encoded target's query has already. A `?` before `u=` is read as `&`.
3. A path after `/v1/forward` is appended to the target's path, except when the target's path ends with it already,
   or when it is a label: one single segment that is a provider's name, or that follows a target which already
   names an endpoint of the provider table.
4. For providers of the table a lost slash (`/v1chat/completions`) and a doubled version (`/v1/v1/messages`) are
   repaired.
5. Without `u=` in the path: `/v1/forward/https/<host>/<path>?<query>`, for clients that drop the query of a base URL.

The host is compared byte for byte: whatever two URL parsers could read differently is refused, not normalised.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import unquote, unquote_plus, urlsplit

import msgspec

from gateway.errors import ObolError

MAX_TARGET_BYTES = 8192
EXAMPLE = "/v1/forward?u=https://api.openai.com/v1/chat/completions"

_PREFIXES = ("/v1/forward", "/forward")  # a client that strips "/v1" off its base URL asks for the second
_LITERAL_DELIMITER = re.compile(r"[/?]")
_U = re.compile(r"(?:^|[&?])u=")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")
_IP_LIKE = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*\.?")
_SPECIAL_USE = frozenset(
    {"alt", "arpa", "internal", "invalid", "local", "localhost", "onion", "test"}
    | {"corp", "home", "intranet", "lan", "localdomain", "private"}  # RFC 6762, appendix G
)
_VERSION = r"/v[0-9]++(?:(?:alpha|beta)[0-9]*+)?"  # possessive: a long row of digits is read once
_LOST_SLASH = re.compile(
    rf"({_VERSION}|/openai)(?=(?:assistants|audio|batches|chat|completions|containers|conversations|embeddings|evals"
    r"|files|fine_tuning|images|messages|models|moderations|rerank|responses|threads|uploads|vector_stores|videos)"
    r"(?:/|$))"
)
_DOUBLED_VERSION = re.compile(rf"((?:/openai)?{_VERSION})\1(?=/|$)")


class ProviderRow(Protocol):
    """What is asked of a row of the provider table."""

    @property
    def credential_query(self) -> str | None: ...

    def format_of(self, method: str, path: str) -> str: ...


Row = TypeVar("Row", bound=ProviderRow)
RowCovariant = TypeVar("RowCovariant", bound=ProviderRow, covariant=True)


class ProviderTable(Protocol[RowCovariant]):
    """What is asked of the provider table (`gateway.providers.Providers`); `names` are in lower case."""

    @property
    def names(self) -> AbstractSet[str]: ...

    def by_origin(self, origin: str, path: str) -> RowCovariant | None: ...


class Target(msgspec.Struct, Generic[Row], frozen=True, kw_only=True):
    """Where a request goes. `str` and `repr` show the origin and bare path only: a query may hold secrets."""

    scheme: str
    host: str
    """Lower case, without port."""
    port: int
    origin: str
    """`scheme://host`, with the port where it is not the scheme's own."""
    path: str
    """The request target to send upstream: path and query, percent-encoding as received."""
    bare_path: str
    """`path` without its query."""
    provider: Row | None
    """None for a host that is not in the table."""
    query_key: str | None = None
    """The credential that stood in the query (Google's `key`), decoded. It is not in `path`."""
    metadata: str | None = None
    """The gateway's own query parameter `metadata`, decoded: JSON text, not yet checked."""

    @property
    def query(self) -> str:
        return self.path[len(self.bare_path) + 1 :]

    def __repr__(self) -> str:
        return f"Target({self.origin}{self.bare_path})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("url", f"{self.origin}{self.bare_path}")]


def resolve(
    raw_target: str,
    providers: ProviderTable[Row],
    *,
    allowed_http_origins: AbstractSet[str] = frozenset(),
) -> Target[Row]:
    """The upstream URL that `raw_target`, the request line's target as received, asks for.

    `allowed_http_origins`: origins such as "http://127.0.0.1:9000" that may be reached without TLS (tests).
    Raise ObolError `forward_target_missing` or `forward_target_invalid` with param "u".
    """
    _check_characters(raw_target)
    gateway_path, _, raw_query = raw_target.partition("?")
    remainder = _remainder(gateway_path)
    if remainder.startswith(("/https/", "/http/")):
        scheme, _, rest = remainder[1:].partition("/")
        url, remainder, parameters, encoded = f"{scheme}://{rest}", "", raw_query.split("&"), False
    else:
        url, parameters, encoded = _value_of_u(raw_query)
    origin, scheme, host, port, path, query = _split(url, providers, allowed_http_origins)
    path = _join(path, remainder, origin, providers)
    path, provider = _repair(path, origin, providers)
    _check_path(path)
    query, metadata = _merge(query, parameters, dedupe=encoded)
    query, query_key = _take_key(query, provider)
    return Target(
        scheme=scheme,
        host=host,
        port=port,
        origin=origin,
        path=f"{path}?{query}" if query else path,
        bare_path=path,
        provider=provider,
        query_key=query_key,
        metadata=metadata,
    )


def _invalid(what: str) -> ObolError:
    # Never quotes the target: it may hold a credential.
    return ObolError("forward_target_invalid", f"The target URL {what}. Example: {EXAMPLE}", param="u")


def _missing(what: str) -> ObolError:
    return ObolError("forward_target_missing", f"{what} Example: {EXAMPLE}", param="u")


def _check_characters(text: str) -> None:
    if len(text) > MAX_TARGET_BYTES:
        raise _invalid(f"is longer than {MAX_TARGET_BYTES} bytes")
    if not text.isascii():
        raise _invalid("has characters outside ASCII; percent-encode those of the path, and no host may have any")
    if not text.isprintable() or " " in text:
        raise _invalid("has a space or control character; percent-encode it")
    if "\\" in text:
        raise _invalid("has a backslash")
    if "#" in text:
        raise _invalid("has a fragment (#)")


def _remainder(gateway_path: str) -> str:
    """What follows `/v1/forward` in the gateway's path: "" or a path of at least one character after its slash."""
    for prefix in _PREFIXES:
        if gateway_path.startswith(prefix):
            rest = gateway_path[len(prefix) :]
            if rest in ("", "/"):
                return ""
            if rest[0] == "/":
                return rest
    raise _invalid("must be asked for at /v1/forward")


def _value_of_u(raw_query: str) -> tuple[str, list[str], bool]:
    """The value of `u`, the other parameters in order, and whether the value came percent-encoded."""
    found = _U.search(raw_query)
    if found is None:
        raise _missing(
            "The query parameter u, the target URL, is missing. For a client that drops the query of its base URL, "
            "use the base URL /v1/forward/https/<host>/<path>."
        )
    value, *after = raw_query[found.end() :].split("&")
    if not value:
        raise _missing("The query parameter u, the target URL, is empty.")
    if after and any(parameter.startswith("u=") for parameter in after):
        raise _invalid("is given twice (u=...&u=...); percent-encode a target that has a parameter u of its own")
    before = raw_query[: found.start()].replace("?", "&").split("&") if found.start() else []
    if value[:8].lower().startswith(("https://", "http://")):
        return value, before + after, False
    return _decode(value), before + after, True


def _decode(value: str) -> str:
    """Percent-decode once what its sender encoded, and leave what a client appended to it."""
    literal = _LITERAL_DELIMITER.search(value)
    cut = literal.start() if literal else len(value)
    if "%2f" not in value[:cut].lower():
        cut = len(value)  # an encoder that leaves "/" alone: the whole value is its work
    try:
        decoded = unquote(value[:cut], errors="strict") + value[cut:]
    except UnicodeDecodeError:
        raise _invalid("is not percent-encoded UTF-8") from None
    _check_characters(decoded)
    return decoded


def _split(
    url: str, providers: ProviderTable[Row], allowed_http_origins: AbstractSet[str]
) -> tuple[str, str, str, int, str, str]:
    """Origin, scheme, host, port, path and query of an absolute URL. Raise for all but a plain https host."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("https", "http"):
        raise _invalid("must be absolute and start with https://")
    before_query, _, query = rest.partition("?")
    authority, slash, path = before_query.partition("/")
    authority = authority.lower()
    origin = f"{scheme}://{authority}"
    path = slash + path or "/"
    if scheme == "http":
        return *_plain_http(origin, allowed_http_origins), path, query
    if providers.by_origin(origin, path) is None:
        authority = _checked_host(authority)
        origin = f"https://{authority}"
    return origin, scheme, authority, 443, path, query


def _plain_http(origin: str, allowed: AbstractSet[str]) -> tuple[str, str, str, int]:
    if origin not in allowed:
        raise _invalid("must start with https://; http:// is not allowed")
    parts = urlsplit(origin)
    return origin, "http", parts.hostname or "", parts.port or 80


def _checked_host(authority: str) -> str:
    """The host of an authority without the port 443. Raise for whatever is no plain DNS name."""
    if not authority:
        raise _invalid("has no host")
    if "@" in authority:
        raise _invalid("has a user name or password (@)")
    if "%" in authority:
        raise _invalid("has a percent-encoded character in its host; encode the whole URL once, or not at all")
    if authority.startswith("["):
        raise _invalid("has an IP address as its host; name the host")
    host, colon, port = authority.partition(":")
    if colon and port != "443":
        raise _invalid("has a port; only 443, the port of https, is allowed")
    fault = host_fault(host)
    if fault is not None:
        raise _invalid(fault)
    return host


def host_fault(host: str) -> str | None:
    """Why `host`, in lower case, is no plain public DNS name, as a predicate of its URL; None where it is one."""
    if _IP_LIKE.fullmatch(host):
        return "has an IP address as its host; name the host"
    labels = host.split(".")
    if len(host) > 253 or not _HOST.fullmatch(host) or any(label.startswith("xn--") for label in labels):
        return "has a host that is not a DNS name of ASCII letters, digits and hyphens with at least one dot"
    if labels[-1] in _SPECIAL_USE:
        return "has a host of a local or special-use domain"
    return None


def _join(path: str, remainder: str, origin: str, providers: ProviderTable[Row]) -> str:
    """Rule 3 of the module: append the gateway path's remainder unless it is there already or is a label."""
    if not remainder or path.endswith(remainder) or _is_label(path, remainder, origin, providers):
        return path
    return path.rstrip("/") + remainder


def _is_label(path: str, remainder: str, origin: str, providers: ProviderTable[Row]) -> bool:
    segment = remainder.strip("/")
    if "/" in segment:
        return False
    if segment.lower() in providers.names:
        return True
    provider = providers.by_origin(origin, path)
    return provider is not None and provider.format_of("POST", path) != "unknown"


def _repair(path: str, origin: str, providers: ProviderTable[Row]) -> tuple[str, Row | None]:
    """Rule 4 of the module, and the provider of the path as repaired."""
    provider = providers.by_origin(origin, path)
    if provider is None:
        return path, None
    repaired = path
    if _LOST_SLASH.search(path):
        repaired = _LOST_SLASH.sub(r"\1/", repaired, count=1)
    if path.count("/v") > 1:
        repaired = _DOUBLED_VERSION.sub(r"\1", repaired, count=1)
    return repaired, provider if repaired == path else providers.by_origin(origin, repaired)


def _check_path(path: str) -> None:
    """Refuse what another parser would read as another path ("." and ".." in any encoding) or host ("//" first)."""
    if path.startswith("//"):
        raise _invalid("has an empty first path segment (//)")
    if "%" not in path and "/." not in path:
        return
    for _ in range(4):
        if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", path)):
            raise _invalid("has a . or .. in its path")
        path, before = unquote(path), path
        if not path.isprintable():
            raise _invalid("has an encoded control character in its path")
        if path == before:
            return
    raise _invalid("is percent-encoded too many times")


def _merge(query: str, parameters: list[str], *, dedupe: bool) -> tuple[str, str | None]:
    """Rule 2 of the module: the target's query, and the text of the gateway's own parameter `metadata`."""
    if not parameters:
        return query, None
    metadata = None
    merged = [query] if query else []
    present = query.split("&") if dedupe else []
    for parameter in parameters:
        if parameter.startswith("metadata="):
            if metadata is not None:
                raise ObolError("metadata_invalid", "The query parameter metadata is given twice.", param="metadata")
            metadata = unquote_plus(parameter[len("metadata=") :])
        elif parameter and parameter not in present:
            merged.append(parameter)
    return "&".join(merged), metadata


def _take_key(query: str, provider: ProviderRow | None) -> tuple[str, str | None]:
    """Take the vendor's credential parameter out of the query; of several the first one counts."""
    name = provider.credential_query if provider is not None and query else None
    if name is None:
        return query, None
    parameters = query.split("&")
    keys = [parameter for parameter in parameters if unquote(parameter.partition("=")[0]) == name]
    if not keys:
        return query, None
    return "&".join(p for p in parameters if p not in keys), unquote(keys[0].partition("=")[2])
