"""Price books: plain data with its own match rules, and who decides a price where several know one.

A merchant's own prices win over the operator's (config/prices.toml), these over the published ones. A book is stored
under its `version`; a charge names that version, and so can be computed again without the settings, or the release of
genai-prices, that it was made with.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from gateway.core.price import Cost, ModelPrice
from gateway.core.usage import Usage

MEMOISED_NAMES_MAX = 8_192
MERCHANT_NAMES_MAX = 256
MODEL_NAME_MAX_CHARACTERS = 512
JOINT = "+"
"""Between the versions of the installation's book and of the merchant's, in the version of both."""
_COMPACT_DATE = re.compile(r"-(20\d{2})(\d{2})(\d{2})(?=-|:|$)", re.ASCII)

ClauseKind = Literal["starts_with", "ends_with", "contains", "equals", "regex", "or", "and"]


class Clause(msgspec.Struct, frozen=True, array_like=True):
    """One match rule on a lower-case model name: a comparison with `text`, or a combination of `parts`."""

    kind: ClauseKind
    text: str = ""
    parts: tuple[Clause, ...] = ()

    def matches(self, name: str) -> bool:
        match self.kind:
            case "equals":
                return name == self.text
            case "starts_with":
                return name.startswith(self.text)
            case "ends_with":
                return name.endswith(self.text)
            case "contains":
                return self.text in name
            case "regex":
                return re.search(self.text, name) is not None
            case "or":
                return any(part.matches(name) for part in self.parts)
            case "and":
                return all(part.matches(name) for part in self.parts)


class PricedModel(msgspec.Struct, frozen=True):
    match: Clause
    price: ModelPrice


class ProviderPrices(msgspec.Struct, frozen=True):
    """The models of one provider in order of precedence, and the providers whose models it also offers."""

    models: tuple[PricedModel, ...]
    fallbacks: tuple[str, ...] = ()

    def find(self, name: str) -> ModelPrice | None:
        return next((model.price for model in self.models if model.match.matches(name)), None)


class BookContent(msgspec.Struct, frozen=True):
    """All that decides a price. `operator` is keyed by this gateway's provider names, `published` by genai-prices'."""

    operator: dict[str, ProviderPrices]
    published: dict[str, ProviderPrices]
    names: dict[str, str]


Source = Literal["merchant", "operator", "published"]
PRECEDENCE: tuple[Source, ...] = ("published", "operator", "merchant")


class Found(NamedTuple):
    """A price and who says so. `provider`: under whose name it is published, else the provider's own name."""

    price: ModelPrice
    source: Source
    provider: str


class Book(ABC):
    """What prices calls. `version` is stored with each charge.

    `valid_until`: when a published price next starts or ends (deepseek's prices change with the hour); compile
    again then. None: no change is known.
    """

    version: str
    valid_until: datetime | None

    def find(self, provider: str, model: str) -> ModelPrice | None:
        """The price of `model` (any name the provider takes: dated, alias, fine-tune), None if unknown.

        A model that is published without a rate is known: all its usage comes out as `Cost.unpriced`.
        """
        found = self.found(provider, model)
        return found.price if found is not None else None

    @abstractmethod
    def found(self, provider: str, model: str) -> Found | None:
        """The same, with its source."""

    @abstractmethod
    def locate(self, provider: str, model: str) -> Found | None:
        """The same. Not memoised."""

    @abstractmethod
    def priced(self, provider: str) -> Iterator[tuple[str, Found]]:
        """The models of a provider in order of precedence, by the name to ask for. A rule that covers many names is
        told as the name it was published under, or with the star it was written with; a later one may be hidden."""

    @property
    @abstractmethod
    def own_providers(self) -> frozenset[str]:
        """The providers and hosts that have prices of the operator's or the merchant's."""

    def cost(self, provider: str, model: str, usage: Usage, service_tier: str | None = None) -> Cost | None:
        """The cost of one request, its extra iterations on other models included. None: the model is unknown."""
        price = self.find(provider, model)
        if price is None:
            return None
        return price.cost(usage, service_tier, lambda other: self.find(provider, other))


class PriceBook(Book):
    """The prices of the operator and the published ones, or those of one merchant.

    Immutable; `found` is memoised in a bounded LRU, also for models without a price. Safe to share by threads. The same
    prices give the same `version`, whenever they were compiled.
    """

    def __init__(
        self,
        content: BookContent,
        valid_until: datetime | None = None,
        *,
        stored: bytes | None = None,
        names_max: int = MEMOISED_NAMES_MAX,
    ) -> None:
        """`stored`: what the content was decoded from, so that a later release gives it the same version."""
        self._content = content
        self._json = stored if stored is not None else msgspec.json.encode(content, order="deterministic")
        self.version = hashlib.sha256(self._json).hexdigest()[:16]
        self.valid_until = valid_until
        self._found = lru_cache(maxsize=names_max)(self.locate)

    def found(self, provider: str, model: str) -> Found | None:
        if len(model) > MODEL_NAME_MAX_CHARACTERS:
            return None
        return self._found(provider, model)

    def locate(self, provider: str, model: str) -> Found | None:
        name = model.lower().removeprefix("models/")
        return self._match(provider, name) or self._match(provider, _COMPACT_DATE.sub(r"-\1-\2-\3", name))

    def priced(self, provider: str) -> Iterator[tuple[str, Found]]:
        own = self._content.operator.get(provider)
        for model in own.models if own else ():
            yield model.price.model, Found(model.price, "operator", provider)
        name = self._published_name(provider)
        published = self._content.published.get(name)
        for each in (name, *published.fallbacks) if published else ():
            for model in self._content.published[each].models:
                yield model.price.model, Found(model.price, "published", each)

    @property
    def own_providers(self) -> frozenset[str]:
        return frozenset(self._content.operator)

    @property
    def own_models(self) -> int:
        """How many models (or rules for many) have a price of the operator or the merchant."""
        return sum(len(prices.models) for prices in self._content.operator.values())

    def to_json(self) -> bytes:
        return self._json

    def stored(self) -> bytes:
        """As it is stored under its version. Compresses: better called off the event loop where the book is large."""
        return gzip.compress(self._json, mtime=0)

    @classmethod
    def from_json(cls, data: bytes, *, names_max: int = MEMOISED_NAMES_MAX) -> PriceBook:
        """The book that `to_json` stored. Raise ValueError if it is not one."""
        return cls(msgspec.json.decode(data, type=BookContent), stored=data, names_max=names_max)

    def _published_name(self, provider: str) -> str:
        return self._content.names.get(provider, provider)

    def _match(self, provider: str, name: str) -> Found | None:
        own = self._content.operator.get(provider)
        if own is not None and (price := own.find(name)) is not None:
            return Found(price, "operator", provider)
        known_as = self._published_name(provider)
        published = self._content.published.get(known_as)
        if published is None:
            return None
        if (price := published.find(name)) is not None:
            return Found(price, "published", known_as)
        for fallback in published.fallbacks:
            price = self._content.published[fallback].find(name)
            if price is not None:
                # Another provider's service tiers are not on offer here.
                return Found(msgspec.structs.replace(price, service_tiers={}), "published", fallback)
        return None


class MerchantBook(Book):
    """A merchant's own prices before those of the installation. Its version names both, so both are stored once."""

    def __init__(self, base: Book, own: PriceBook) -> None:
        self._base = base
        self._own = own
        self.version = f"{base.version}{JOINT}{own.version}"
        self.valid_until = base.valid_until

    def find(self, provider: str, model: str) -> ModelPrice | None:
        return self._own.find(provider, model) or self._base.find(provider, model)

    def found(self, provider: str, model: str) -> Found | None:
        own = self._own.found(provider, model)
        return own._replace(source="merchant") if own is not None else self._base.found(provider, model)

    def locate(self, provider: str, model: str) -> Found | None:
        own = self._own.locate(provider, model)
        return own._replace(source="merchant") if own is not None else self._base.locate(provider, model)

    def priced(self, provider: str) -> Iterator[tuple[str, Found]]:
        for name, found in self._own.priced(provider):
            yield name, found._replace(source="merchant")
        yield from self._base.priced(provider)

    @property
    def own_providers(self) -> frozenset[str]:
        return self._own.own_providers | self._base.own_providers


def merchants_book(stored: bytes) -> PriceBook:
    """A merchant's own prices, as `PriceBook.stored` made them."""
    return PriceBook.from_json(gzip.decompress(stored), names_max=MERCHANT_NAMES_MAX)
