"""Customers, also called connections, and their subscriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from obol_sdk import models
from obol_sdk.call import Call, Resource, World, body, call, get, paged, place, present, query
from obol_sdk.pages import Listed


class Customers(Resource[World]):
    """Also called connections. A customer is named by its id or by your `reference_id`."""

    @call
    def create(
        self,
        *,
        reference_id: str | None = None,
        email: str | None = None,
        phone: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Call[models.Customer]:
        """With a `reference_id` that is known already the answer is that customer, unchanged."""
        fields = present(reference_id=reference_id, email=email, phone=phone, name=name, metadata=metadata)
        return Call("POST", "customers", models.Customer, body=fields, repeatable=reference_id is not None)

    @call
    def retrieve(self, customer_id: str) -> Call[models.Customer]:
        return get(place("customers", customer_id), models.Customer)

    @paged
    def list(
        self, *, reference_id: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Call[Listed[models.Customer]]:
        asked = query(reference_id=reference_id, limit=limit, cursor=cursor)
        return get("customers", Listed[models.Customer], asked)

    @call
    def update(
        self,
        customer_id: str,
        *,
        reference_id: str | UnsetType | None = UNSET,
        email: str | UnsetType | None = UNSET,
        phone: str | UnsetType | None = UNSET,
        name: str | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
    ) -> Call[models.Customer]:
        """None clears a field."""
        fields = body(reference_id=reference_id, email=email, phone=phone, name=name, metadata=metadata)
        return Call("PATCH", place("customers", customer_id), models.Customer, body=fields)

    @call
    def subscription(self, customer_id: str) -> Call[models.SubscriptionOf]:
        return get(place("customers", customer_id, "subscription"), models.SubscriptionOf)

    @call
    def delete(self, customer_id: str) -> Call[models.Deleted]:
        """Its tokens fail from now on; its requests stay readable."""
        return Call("DELETE", place("customers", customer_id), models.Deleted)


class Subscriptions(Resource[World]):
    @call
    def create(self, *, customer_id: str, plan_id: str) -> Call[models.Changed]:
        """Plans that cost nothing only: the others begin with a checkout session."""
        return Call("POST", "subscriptions", models.Changed, body=body(customer_id=customer_id, plan_id=plan_id))

    @paged
    def list(
        self,
        *,
        status: Literal["active", "cancelled", "all"] | None = None,
        customer_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Call[Listed[models.ListedSubscription]]:
        asked = query(status=status, customer_id=customer_id, limit=limit, cursor=cursor)
        return get("subscriptions", Listed[models.ListedSubscription], asked)

    @call
    def retrieve(self, subscription_id: str) -> Call[models.ListedSubscription]:
        return get(place("subscriptions", subscription_id), models.ListedSubscription)

    @call
    def update(
        self,
        subscription_id: str,
        *,
        auto_top_up_bundle_id: str | UnsetType | None = UNSET,
        plan_id: str | UnsetType = UNSET,
    ) -> Call[models.Changed]:
        """A bundle to buy when credit is gone, None for none; or a plan that costs no more, from the cycle's end."""
        fields = body(auto_top_up_bundle_id=auto_top_up_bundle_id, plan_id=plan_id)
        return Call("PATCH", place("subscriptions", subscription_id), models.Changed, body=fields)

    @call
    def cancel(self, subscription_id: str) -> Call[models.Deleted]:
        """At the end of its cycle. Once more is no mistake."""
        return Call("DELETE", place("subscriptions", subscription_id), models.Deleted)
