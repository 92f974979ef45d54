"""Endpoints that are told what happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from obol_sdk import models
from obol_sdk.call import Call, Resource, World, body, call, get, paged, place, present, query
from obol_sdk.pages import Listed


class Webhooks(Resource[World]):
    """Endpoints. What arrives there is verified by `obol_sdk.webhooks.verify`."""

    @call
    def create(
        self,
        *,
        name: str,
        url: str,
        events: Sequence[str] | None = None,
        event_style: models.EventStyle | None = None,
        signature_style: models.SignatureStyle | None = None,
    ) -> Call[models.NewWebhook]:
        """`webhook_secret` is shown this once. Without `events` all are sent."""
        fields = present(name=name, url=url, events=events, event_style=event_style, signature_style=signature_style)
        return Call("POST", "webhooks", models.NewWebhook, body=fields)

    @call
    def retrieve(self, webhook_id: str) -> Call[models.Webhook]:
        return get(place("webhooks", webhook_id), models.Webhook)

    @paged
    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Listed[models.Webhook]]:
        return get("webhooks", Listed[models.Webhook], query(limit=limit, cursor=cursor))

    @call
    def update(
        self,
        webhook_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        events: Sequence[str] | UnsetType | None = UNSET,
        event_style: models.EventStyle | None = None,
        signature_style: models.SignatureStyle | None = None,
        status: Literal["active", "paused"] | None = None,
    ) -> Call[models.Webhook]:
        """`events` None: all of them again. A paused endpoint is told nothing, later neither."""
        fields = present(name=name, url=url, event_style=event_style, signature_style=signature_style, status=status)
        return Call("PATCH", place("webhooks", webhook_id), models.Webhook, body=fields | body(events=events))

    @call
    def delete(self, webhook_id: str) -> Call[models.Deleted]:
        return Call("DELETE", place("webhooks", webhook_id), models.Deleted)

    @call
    def rotate(self, webhook_id: str) -> Call[models.NewWebhook]:
        """A new secret. The one so far signs beside it for a while."""
        return Call("POST", place("webhooks", webhook_id, "rotate"), models.NewWebhook)

    @paged
    def deliveries(
        self,
        webhook_id: str,
        *,
        status: Literal["waiting", "delivered", "dead"] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Call[Listed[models.Delivery]]:
        """What an endpoint was sent, and what still waits."""
        asked = query(status=status, limit=limit, cursor=cursor)
        return get(place("webhooks", webhook_id, "deliveries"), Listed[models.Delivery], asked)

    @call
    def resend(self, webhook_id: str, event_id: str) -> Call[models.Delivery]:
        path = place("webhooks", webhook_id, "deliveries", event_id, "resend")
        return Call("POST", path, models.Delivery)
