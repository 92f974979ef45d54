"""The provider table (`config/providers.toml`): exact origins, credential header, wire format of each path.

Read once at start. What a request asks of it - which provider is this origin, which format is this path - is
answered by dictionary lookups.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from gateway import share
from gateway.errors import ConfigurationError

PLAIN = "plain"
"""The format of what costs nothing at the provider: all but POST, and the paths that the table says so of."""
HTTP = "http"
"""The format of any API at a host that is not in the table: priced by the call, its time and its bytes."""
OTHER_HOSTS = "other_hosts"
"""The set of formats that such a host is taken to speak where a path is one of them."""
UNKNOWN = "unknown"
"""What the table does not name: it may cost money that no meter would see, so it is not served."""

FORMAT_NAMES = frozenset(
    {
        "openai_chat",
        "openai_completions",
        "mistral_fim",
        "openai_responses",
        "openai_embeddings",
        "anthropic_messages",
        "anthropic_count_tokens",
        "gemini_generate",
        "gemini_stream",
        "gemini_embed",
        "gemini_count_tokens",
        "cohere_v1_chat",
        "cohere_v2_chat",
        "cohere_embed",
        "rerank",
        "images",
        "hyperbolic_images",
        "audio_speech",
        "audio_transcriptions",
        "moderations",
        "elevenlabs_tts",
        "elevenlabs_stt",
        PLAIN,
    }
)

APIS = frozenset({"openai", "anthropic", "google", "cohere", "rerank", "elevenlabs"})
"""The vendors' APIs that the gateway's own routes speak (`wire/dropin.py`)."""

_PLAIN_PATH = re.compile(r"[a-z0-9/._~:@!$&'()*+,=-]*")
_ORIGIN = re.compile(r"https://(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,63}")
_PATTERN = re.compile(r"(?:/[A-Za-z0-9_.-]+)+(?:/\*)?|:[A-Za-z]+")

FormatSets = dict[str, dict[str, str]]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [[provider]] as written in the file."""

    name: str
    base: str
    origins: tuple[str, ...]
    credential: Literal["bearer", "x-api-key", "x-goog-api-key", "xi-api-key"] = "bearer"
    formats: tuple[str, ...] = ("openai",)
    inject_usage: bool = False
    path_prefixes: tuple[str, ...] = ()
    credential_query: str | None = None
    default_headers: dict[str, str] = {}
    bases: dict[str, str] = {}
    realtime_paths: tuple[str, ...] = ()
    drop_in: tuple[str, ...] | None = None


class PathFormats:
    """Path pattern -> format name. Immutable; the pattern kinds are described in the file's header."""

    __slots__ = ("_prefixes", "_suffix_segments_max", "_suffixes", "_verbs")

    def __init__(self, patterns: Mapping[str, str]) -> None:
        lower = {pattern.lower(): name for pattern, name in patterns.items()}
        self._verbs = {pattern: name for pattern, name in lower.items() if pattern[0] == ":"}
        self._prefixes = {pattern[:-1]: name for pattern, name in lower.items() if pattern.endswith("/*")}
        self._suffixes = {p: name for p, name in lower.items() if p[0] == "/" and not p.endswith("/*")}
        self._suffix_segments_max = max((p.count("/") for p in self._suffixes), default=0)

    @property
    def names(self) -> frozenset[str]:
        """Every format that some path has."""
        return frozenset((*self._verbs.values(), *self._prefixes.values(), *self._suffixes.values()))

    def find(self, path: str) -> str | None:
        """The format of a canonical path, or None."""
        cut = path.rfind("/")
        if self._verbs and (colon := path.rfind(":")) > cut and path[colon:] in self._verbs:
            return self._verbs[path[colon:]]
        for prefix, name in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return name
        found = None
        for _ in range(self._suffix_segments_max):
            if cut < 0:
                break
            found = self._suffixes.get(path[cut:], found)
            cut = path.rfind("/", 0, cut)
        return found


class Provider(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One provider of the table, shared by all requests to it."""

    name: str
    base: str
    origins: tuple[str, ...]
    credential: str
    inject_usage: bool
    default_headers: Mapping[str, str]
    path_prefixes: tuple[str, ...]
    credential_query: str | None
    path_formats: PathFormats
    realtime_paths: tuple[str, ...] = ()
    """Exact paths at which a WebSocket speaks OpenAI's realtime protocol."""
    bases: Mapping[str, str]
    drop_in: frozenset[str]
    """The APIs that are asked of it on the gateway's own routes."""

    @property
    def origin(self) -> str:
        """The origin of `base`, e.g. "https://api.openai.com"."""
        return self.origins[0]

    def format_of(self, method: str, path: str) -> str:
        """The wire format's name for a request; `path` may have a query. "plain" for all but POST.

        The path is compared in canonical form, because a provider decodes `%63hat` too. What is still escaped then, or
        was escaped because a path cannot hold it (`ch%2561t`, `chat%20`), could be an endpoint in disguise: "unknown".
        """
        if method != "POST":
            return PLAIN
        canonical = canonical_path(path)
        if not _PLAIN_PATH.fullmatch(canonical):
            return UNKNOWN
        return self.path_formats.find(canonical) or UNKNOWN

    def url_of(self, api: str, suffix: str, format_name: str) -> str | None:
        """The URL at which it speaks a format of an API; `suffix` follows the API's base. None where it does not."""
        if api not in self.drop_in:
            return None
        url = self.bases.get(api, self.base) + suffix
        return url if self.format_of("POST", "/" + url.split("/", 3)[3]) == format_name else None

    def credential_header(self, key: str) -> tuple[str, str]:
        """The header (name in lower case, value) that presents `key` to this provider."""
        if self.credential == "bearer":
            return "authorization", f"Bearer {key}"
        return self.credential, key


class Providers:
    """All providers. Immutable."""

    __slots__ = ("_by_name", "_by_origin", "default_models", "names", "other_formats")

    def __init__(
        self,
        rows: list[Provider],
        other_hosts: PathFormats | None = None,
        default_models: Mapping[str, str] | None = None,
    ) -> None:
        self._by_name = MappingProxyType({row.name.lower(): row for row in rows})
        self.names: frozenset[str] = frozenset(self._by_name)
        """Every name, in lower case."""
        self._by_origin = MappingProxyType(_index_origins(rows))
        self.other_formats = other_hosts or PathFormats({})
        """Of hosts without a row."""
        self.default_models = tuple((default_models or {}).items())
        """Names of models (lower case; a star at the end matches any ending) and the provider to ask for each."""

    def __iter__(self) -> Iterator[Provider]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def by_name(self, name: str) -> Provider | None:
        """The provider of that name, in any case (settings have the names in lower case)."""
        return self._by_name.get(name.lower())

    def kin(self, provider: Provider) -> list[Provider]:
        """A provider and the rows that share an origin with it: Google's native and OpenAI-compatible APIs."""
        origins = set(provider.origins)
        return [provider, *(row for row in self if row is not provider and origins & set(row.origins))]

    def format_elsewhere(self, method: str, path: str) -> str:
        """The wire format's name for a request to a host that is not in the table, which the caller pays himself."""
        return (self.other_formats.find(canonical_path(path)) if method == "POST" else None) or HTTP

    def by_origin(self, origin: str, path: str) -> Provider | None:
        """The provider at an exact origin ("https://host", lower case, no port) and path, or None.

        Where rows share an origin (Google's native and OpenAI-compatible APIs) the longest path prefix decides.
        """
        candidates = self._by_origin.get(origin)
        if candidates is None:
            return None
        if not candidates[0][0]:
            return candidates[0][1]
        path = canonical_path(path) + "/"
        return next((row for prefix, row in candidates if path.startswith(prefix)), None)


def managed_keys(providers: Providers, keys: Mapping[str, str]) -> dict[str, str]:
    """The installation's key for each provider by name: its own, else that of another row with all of its origins.

    Google's native and OpenAI-compatible APIs are one origin and one key. `keys` has names in lower case.
    """
    found: dict[str, str] = {}
    for row in providers:
        named = [row, *(other for other in providers if set(row.origins) <= set(other.origins))]
        key = next((keys[each.name.lower()] for each in named if each.name.lower() in keys), None)
        if key is not None:
            found[row.name] = key
    return found


def callable_names(providers: Providers, keys: Mapping[str, str], stand_ins: Container[str]) -> frozenset[str]:
    """The providers that can be called without a key of the caller's: there is one here, or a stand-in needs none."""
    return frozenset(row.name for row in providers if row.name in keys or row.origin in stand_ins)


def canonical_path(path: str) -> str:
    """`path` without query as lenient servers read it, for matching only: decoded, no empty segments, lower case."""
    path = path.partition("?")[0]
    if "%" not in path and "//" not in path and ";" not in path:
        return path.lower().rstrip("/") or "/"
    segments = (segment.partition(";")[0] for segment in unquote(path).split("/"))
    return "/" + "/".join(segment for segment in segments if segment).lower()


def load(path: Path | None = None) -> Providers:
    """Read the provider table. Raise ConfigurationError naming the file and the row at fault."""
    path = path or share.directory("config") / "providers.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"the provider table {path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the provider table {path} is not TOML: {error}") from None
    try:
        return parse(table)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def parse(table: dict[str, Any]) -> Providers:
    """Build the table from its decoded TOML. Raise ConfigurationError naming the row at fault."""
    if unknown := set(table) - {"formats", "default_models", "provider"}:
        known = "[formats.<set>], [default_models] and [[provider]]"
        raise ConfigurationError(f"unknown table {min(unknown)!r}: only {known} are known")
    sets = _format_sets(table.get("formats", {}))
    entries = table.get("provider", [])
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError("there is no [[provider]]")
    rows = [_provider(entry, number, sets) for number, entry in enumerate(entries, 1)]
    seen: set[str] = set()
    for row in rows:
        if row.name.lower() in seen:
            raise ConfigurationError(f"provider {row.name!r}: the name is used twice")
        seen.add(row.name.lower())
    default_models = _default_models(table.get("default_models", {}), {row.name for row in rows})
    return Providers(rows, PathFormats(sets.get(OTHER_HOSTS, {})), default_models)


def _default_models(value: Any, names: set[str]) -> dict[str, str]:
    try:
        given = msgspec.convert(value, dict[str, str])
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"[default_models]: {error}") from None
    for model, name in given.items():
        if not model.rstrip("*") or "*" in model[:-1]:
            raise ConfigurationError(f"[default_models]: {model!r} is no name with or without a star at its end")
        if name not in names:
            raise ConfigurationError(f"[default_models]: {model!r} has the unknown provider {name!r}")
    return {model.lower(): name for model, name in given.items()}


def _format_sets(value: Any) -> FormatSets:
    try:
        sets = msgspec.convert(value, FormatSets)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"[formats]: {error}") from None
    for set_name, patterns in sets.items():
        for pattern, name in patterns.items():
            if not _PATTERN.fullmatch(pattern):
                raise ConfigurationError(
                    f"[formats.{set_name}]: {pattern!r} is not a pattern such as /chat/completions, /v1/tts/* or :verb"
                )
            if name not in FORMAT_NAMES:
                raise ConfigurationError(f"[formats.{set_name}]: {pattern!r} has the unknown format {name!r}")
    return sets


def _provider(entry: Any, number: int, sets: FormatSets) -> Provider:
    label = f"provider {entry.get('name', number)!r}" if isinstance(entry, dict) else f"provider {number}"
    try:
        row = msgspec.convert(entry, _Row)
        _check(row)
        patterns = _patterns(row, sets)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigurationError(f"{label}: {error}") from None
    return Provider(
        name=row.name,
        base=row.base,
        origins=row.origins,
        credential=row.credential,
        inject_usage=row.inject_usage,
        default_headers=MappingProxyType({name.lower(): value for name, value in row.default_headers.items()}),
        path_prefixes=row.path_prefixes,
        credential_query=row.credential_query,
        path_formats=PathFormats(patterns),
        bases=MappingProxyType(row.bases),
        realtime_paths=row.realtime_paths,
        drop_in=APIS if row.drop_in is None else frozenset(row.drop_in),
    )


def _check(row: _Row) -> None:
    """Raise ValueError saying what is wrong with the row."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", row.name):
        raise ValueError("name must be letters, digits and underscores, a letter first")
    if not row.origins:
        raise ValueError("origins is empty")
    for origin in row.origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"origins: {origin!r} is not an exact https origin such as https://api.example.com")
    if not (row.base + "/").startswith(row.origins[0] + "/") or row.base.endswith("/"):
        raise ValueError(
            f"base {row.base!r} must lie below the first of origins, {row.origins[0]!r}, with no slash last"
        )
    for api, base in row.bases.items():
        if api not in APIS:
            raise ValueError(f"bases: {api!r} is none of {', '.join(sorted(APIS))}")
        if not (base + "/").startswith(tuple(origin + "/" for origin in row.origins)) or base.endswith("/"):
            raise ValueError(f"bases: {base!r} must lie below one of origins, with no slash last")
    if unknown := set(row.drop_in or ()) - APIS:
        raise ValueError(f"drop_in: {min(unknown)!r} is none of {', '.join(sorted(APIS))}")
    for prefix in row.path_prefixes:
        if canonical_path(prefix) != prefix:
            raise ValueError(f"path_prefixes: {prefix!r} is not a lower-case path such as /v1beta/openai")
    for path in row.realtime_paths:
        if canonical_path(path) != path or not path.startswith("/"):
            raise ValueError(f"realtime_paths: {path!r} is not a lower-case path such as /v1/realtime")
    for name, value in row.default_headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not (value.isascii() and value.isprintable()):
            raise ValueError(f"default_headers: {name!r} is not a header of printable ASCII")


def _patterns(row: _Row, sets: FormatSets) -> dict[str, str]:
    """The patterns of all the row's format sets. Raise ValueError for an unknown set or a contradiction."""
    patterns: dict[str, str] = {}
    for set_name in row.formats:
        if set_name not in sets:
            raise ValueError(f"formats: there is no [formats.{set_name}]")
        for pattern, name in sets[set_name].items():
            if patterns.setdefault(pattern, name) != name:
                raise ValueError(f"formats: two sets give {pattern!r} different formats")
    return patterns


def _index_origins(rows: list[Provider]) -> dict[str, tuple[tuple[str, Provider], ...]]:
    """Origin -> (prefix with a slash last, provider), longest prefix first; a row without prefixes has ""."""
    by_origin: dict[str, dict[str, Provider]] = {}
    for row in rows:
        for origin in row.origins:
            prefixes = by_origin.setdefault(origin, {})
            for prefix in [path + "/" for path in row.path_prefixes] or [""]:
                other = prefixes.setdefault(prefix, row)
                if other is not row:
                    raise ConfigurationError(
                        f"provider {row.name!r}: {other.name!r} already has {origin}{prefix}; "
                        "rows that share an origin need different path_prefixes"
                    )
    return {
        origin: tuple(sorted(prefixes.items(), key=lambda item: -len(item[0])))
        for origin, prefixes in by_origin.items()
    }
