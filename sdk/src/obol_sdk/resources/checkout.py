"""Checkout sessions."""

from __future__ import annotations

from obol_sdk import models
from obol_sdk.call import Call, Resource, World, call, get, paged, place, present, query
from obol_sdk.pages import Listed


class CheckoutSessions(Resource[World]):
    @call
    def create(
        self,
        *,
        checkout_mode: models.CheckoutMode,
        origin_url: str,
        plan_id: str | None = None,
        customer_id: str | None = None,
        credit_bundle_id: str | None = None,
        reference_id: str | None = None,
    ) -> Call[models.CheckoutSession]:
        """`plan_id` for a subscription, `credit_bundle_id` and `customer_id` for a bundle."""
        fields = present(
            checkout_mode=checkout_mode,
            origin_url=origin_url,
            plan_id=plan_id,
            customer_id=customer_id,
            credit_bundle_id=credit_bundle_id,
            reference_id=reference_id,
        )
        return Call("POST", "checkout_sessions", models.CheckoutSession, body=fields)

    @call
    def retrieve(self, checkout_session_id: str) -> Call[models.CheckoutSession]:
        return get(place("checkout_sessions", checkout_session_id), models.CheckoutSession)

    @paged
    def list(
        self, *, reference_id: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Call[Listed[models.CheckoutSession]]:
        asked = query(reference_id=reference_id, limit=limit, cursor=cursor)
        return get("checkout_sessions", Listed[models.CheckoutSession], asked)
