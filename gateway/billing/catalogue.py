"""Which provider a model is asked of where a call does not say, and which models are on offer here.

In this order:

1. `[default_models]` of config/providers.toml, by the whole name; the first line that matches decides.
2. `provider/model`: what stands before the first slash is a provider of the table. The provider is asked for the rest.
3. The route's own provider, where only one vendor has such a route (ElevenLabs' speech, Cohere's chat).
4. The first provider of the table that has a price for the name; those that can be called with a key of this
   installation come before the others.

A caller who brings a key has to name the provider where more than one could be meant - several have a price for the
name, or rules 1 and 2 disagree - so that the key reaches nobody that it is not for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from gateway.errors import ObolError
from gateway.prices import Book
from gateway.providers import Provider, Providers
from gateway.wire.dropin import Route

KNOWN_MAX = 4_096

Rule = Literal["default", "prefix", "route", "price"]


class Asked(NamedTuple):
    """Whom to ask for a model, by which name, and which of the rules said so."""

    provider: Provider
    model: str
    rule: Rule


class Offer(NamedTuple):
    """A model as a caller may ask for it, and the provider that it is asked of."""

    name: str
    provider: str


class Catalogue:
    """`callable_here`: names of the providers that this installation can call with a key of its own."""

    def __init__(self, providers: Providers, callable_here: frozenset[str]) -> None:
        self._providers = providers
        self._vendors = sorted(_vendors(providers), key=lambda row: row.name not in callable_here)
        self._callable = [row for row in self._vendors if row.name in callable_here]
        self._known: dict[tuple[str, str, str | None, bool], Asked | None] = {}
        self._offers: tuple[str, tuple[Offer, ...]] = ("", ())

    def find(self, name: str, book: Book, *, owner: str | None = None, own_key: bool = False) -> Asked | None:
        """Whom to ask for `name`; None where nobody is known to have it. `owner`: the route's own provider.

        Raise ObolError `forward_model_not_supported` where the caller has to name the provider.
        """
        key = (book.version, name, owner, own_key)
        if key not in self._known:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[key] = self._find(name, book, owner, own_key=own_key)
        return self._known[key]

    def first_with(self, route: Route, *, own_key: bool = False) -> Provider | None:
        """The provider of a call that names no model: the route's own, else the first one that has the route.

        Raise ObolError `forward_model_invalid` where the caller has to name a model, and with it the provider.
        """
        if route.owner is not None:
            return self._providers.by_name(route.owner)
        having = (row for row in self._vendors if self.url(row, route, "") is not None)
        first = next(having, None)
        if own_key and next(having, None) is not None:
            why = "with a key of your own, name the model and the provider that the key is for: openai/<model>"
            raise ObolError("forward_model_invalid", f"the request names no model; {why}", param="model")
        return first

    def url(self, provider: Provider, route: Route, model: str) -> str | None:
        """Where a provider speaks the route's own format, be it under another row of the table; None if nowhere."""
        path = route.path(model)
        urls = (row.url_of(route.api, path, route.format) for row in self._providers.kin(provider))
        return next((url for url in urls if url is not None), None)

    def offers(self, book: Book) -> tuple[Offer, ...]:
        """Every model that has a price and whose provider can be called, in the order of the table.

        Takes some hundred milliseconds where the book is a new one: better called off the event loop.
        """
        version, offers = self._offers
        if version != book.version:
            offers = tuple(dict.fromkeys(self._offered(book)))
            self._offers = book.version, offers
        return offers

    def _offered(self, book: Book) -> Iterator[Offer]:
        for row in self._callable:
            for name, _ in book.priced(row.name):
                if name.endswith("*") or not _has(book, row, name):  # a rule for many names, and none itself
                    continue
                asked = self._find(name, book, None, own_key=False)
                if asked is not None and asked.provider is row and asked.model == name:
                    yield Offer(name, row.name)
                elif asked is None or asked.rule != "default":
                    yield Offer(f"{row.name}/{name}", row.name)

    def _find(self, name: str, book: Book, owner: str | None, *, own_key: bool) -> Asked | None:
        prefix, slash, rest = name.partition("/")
        named = self._providers.by_name(prefix) if slash and rest else None
        if (default := self._default(name)) is not None:
            if own_key and named is not None and named is not default:
                raise _ambiguous(name, default, named)
            return Asked(default, name, "default")
        if named is not None:
            return Asked(named, rest, "prefix")
        if owner is not None and (own := self._providers.by_name(owner)) is not None:
            return Asked(own, name, "route")
        having = (row for row in self._vendors if _has(book, row, name))
        first = next(having, None)
        if first is None:
            return None
        if own_key and (second := next(having, None)) is not None:
            raise _ambiguous(name, first, second)
        return Asked(first, name, "price")

    def _default(self, name: str) -> Provider | None:
        lower = name.lower()
        for pattern, provider in self._providers.default_models:
            if lower.startswith(pattern[:-1]) if pattern[-1] == "*" else lower == pattern:
                return self._providers.by_name(provider)
        return None


def _has(book: Book, row: Provider, name: str) -> bool:
    """Whether the provider has a price for the name: there are models that are published without."""
    found = book.locate(row.name, name)
    return found is not None and found.price.is_priced


def _vendors(providers: Providers) -> list[Provider]:
    """The rows of the table but those that share an origin with one before them: another API of the same vendor's."""
    origins: set[str] = set()
    rows = []
    for row in providers:
        if origins.isdisjoint(row.origins):
            rows.append(row)
        origins.update(row.origins)
    return rows


def _ambiguous(name: str, first: Provider, second: Provider) -> ObolError:
    return ObolError(
        "forward_model_not_supported",
        f"{name!r} may be {first.name}'s or {second.name}'s: with a key of your own, name the provider that it is for, "
        f"as in {first.name}/{name}",
        param="model",
    )
