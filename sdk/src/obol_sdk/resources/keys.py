"""Secret keys, spend keys, and stored keys of providers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypedDict

from msgspec import UNSET, UnsetType

from obol_sdk import models
from obol_sdk.call import Amount, Call, Resource, World, amount, body, call, get, moment, paged, place, present, query
from obol_sdk.pages import Listed


class SpendLimit(TypedDict):
    amount: Amount
    cycle: models.Cycle


class RequestLimit(TypedDict):
    count: int
    cycle: models.Cycle


class RateLimit(TypedDict, total=False):
    rpm: int
    burst: int | None


class SecretKeys(Resource[World]):
    @call
    def create(self, *, name: str) -> Call[models.NewSecretKey]:
        """`secret_key` is shown this once."""
        return Call("POST", "secret_keys", models.NewSecretKey, body=body(name=name))

    @paged
    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Listed[models.SecretKey]]:
        return get("secret_keys", Listed[models.SecretKey], query(limit=limit, cursor=cursor))

    @call
    def delete(self, secret_key_id: str) -> Call[models.Deleted]:
        """Revoke it: tokens that were made of it fail from now on."""
        return Call("DELETE", place("secret_keys", secret_key_id), models.Deleted)

    @call
    def rotate(self, secret_key_id: str) -> Call[models.NewSecretKey]:
        """The key so far ends at once."""
        return Call("POST", place("secret_keys", secret_key_id, "rotate"), models.NewSecretKey)


class SpendKeys(Resource[World]):
    """Keys for the gateway alone, each with limits of its own."""

    @call
    def create(
        self,
        *,
        name: str,
        status: Literal["active", "paused"] | None = None,
        request_shape: Literal["openai", "anthropic"] | None = None,
        allowed_models: Sequence[str] | None = None,
        allowed_providers: Sequence[str] | None = None,
        spend_limit: SpendLimit | None = None,
        request_limit: RequestLimit | None = None,
        rate_limit: RateLimit | None = None,
        expires_at: datetime | str | None = None,
        customer_id: str | None = None,
        meter_slug: str | None = None,
    ) -> Call[models.NewSpendKey]:
        """`key` is shown this once. With `customer_id` what it spends is the customer's, by the meter named."""
        fields = present(
            name=name,
            status=status,
            request_shape=request_shape,
            allowed_models=allowed_models,
            allowed_providers=allowed_providers,
            spend_limit=None if spend_limit is None else _spend_limit(spend_limit),
            request_limit=request_limit,
            rate_limit=rate_limit,
            expires_at=None if expires_at is None else moment(expires_at),
            customer_id=customer_id,
            meter_slug=meter_slug,
        )
        return Call("POST", "spend_keys", models.NewSpendKey, body=fields)

    @call
    def retrieve(self, spend_key_id: str) -> Call[models.SpendKey]:
        return get(place("spend_keys", spend_key_id), models.SpendKey)

    @paged
    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Listed[models.SpendKey]]:
        return get("spend_keys", Listed[models.SpendKey], query(limit=limit, cursor=cursor))

    @call
    def update(
        self,
        spend_key_id: str,
        *,
        name: str | None = None,
        status: Literal["active", "paused"] | None = None,
        request_shape: Literal["openai", "anthropic"] | None = None,
        allowed_models: Sequence[str] | UnsetType | None = UNSET,
        allowed_providers: Sequence[str] | UnsetType | None = UNSET,
        spend_limit: SpendLimit | UnsetType | None = UNSET,
        request_limit: RequestLimit | UnsetType | None = UNSET,
        rate_limit: RateLimit | UnsetType | None = UNSET,
        expires_at: datetime | str | UnsetType | None = UNSET,
    ) -> Call[models.SpendKey]:
        """None takes a limit away."""
        cleared = body(
            allowed_models=allowed_models,
            allowed_providers=allowed_providers,
            spend_limit=_spend_limit(spend_limit) if isinstance(spend_limit, dict) else spend_limit,
            request_limit=request_limit,
            rate_limit=rate_limit,
            expires_at=moment(expires_at) if isinstance(expires_at, datetime) else expires_at,
        )
        fields = present(name=name, status=status, request_shape=request_shape) | cleared
        return Call("PUT", place("spend_keys", spend_key_id), models.SpendKey, body=fields)

    @call
    def revoke(self, spend_key_id: str) -> Call[models.Deleted]:
        return Call("DELETE", place("spend_keys", spend_key_id), models.Deleted)

    @call
    def rotate(self, spend_key_id: str) -> Call[models.NewSpendKey]:
        """The key so far ends at once; limits and counters stay."""
        return Call("POST", place("spend_keys", spend_key_id, "rotate"), models.NewSpendKey)


class ProviderKeys(Resource[World]):
    """Your own keys of providers, kept by the server, encrypted, and used for your calls. One a provider."""

    @call
    def store(self, provider: str, *, key: str) -> Call[models.ProviderKey]:
        """In the place of the one so far. It is never shown again."""
        return Call("PUT", place("provider_keys", provider), models.ProviderKey, body=body(key=key))

    @call
    def retrieve(self, provider: str) -> Call[models.ProviderKey]:
        return get(place("provider_keys", provider), models.ProviderKey)

    @call
    def list(self) -> Call[models.ProviderKeys]:
        return get("provider_keys", models.ProviderKeys)

    @call
    def delete(self, provider: str) -> Call[models.Deleted]:
        return Call("DELETE", place("provider_keys", provider), models.Deleted)


def _spend_limit(limit: SpendLimit) -> dict[str, str]:
    return {"amount": amount(limit["amount"]), "cycle": limit["cycle"]}
