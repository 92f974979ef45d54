"""What was used, and what can be: requests, sums by day, models."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from obol_sdk import models
from obol_sdk.call import Call, Resource, World, call, get, paged, place, present, query
from obol_sdk.pages import Listed


class Requests(Resource[World]):
    """Calls through the gateway, and usage that was reported."""

    @call
    def create(
        self,
        *,
        request_id: str,
        customer_id: str | None = None,
        meter_slug: str | None = None,
        connection_secret: str | None = None,
        product_secret: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        input_characters: int = 0,
        output_characters: int = 0,
        input_seconds: float = 0,
        output_seconds: float = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> Call[models.Request]:
        """Report usage that happened elsewhere. It is charged once for each `request_id`, however often it is sent."""
        fields = present(
            request_id=request_id,
            customer_id=customer_id,
            meter_slug=meter_slug,
            connection_secret=connection_secret,
            product_secret=product_secret,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            input_characters=input_characters,
            output_characters=output_characters,
            input_seconds=input_seconds,
            output_seconds=output_seconds,
            metadata=metadata,
        )
        return Call("POST", "requests", models.Request, body=fields, repeatable=True)

    @call
    def retrieve(self, request_id: str) -> Call[models.Request]:
        return get(place("requests", request_id), models.Request)

    @paged
    def list(
        self,
        *,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Call[Listed[models.Request]]:
        """Those that have all pairs of `metadata`."""
        asked = query(
            customer_id=customer_id, meter_id=meter_id, metadata_filters=metadata or None, limit=limit, cursor=cursor
        )
        return get("requests", Listed[models.Request], asked)


class UsageReports(Resource[World]):
    @call
    def retrieve(
        self,
        *,
        start: datetime | str,
        end: datetime | str | None = None,
        customer_id: str | None = None,
        meter_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Call[models.Usage]:
        """By day, in the time zone of `start`; `end` (now by default) is part of it."""
        asked = query(
            start=start, end=end, customer_id=customer_id, meter_id=meter_id, metadata_filters=metadata or None
        )
        return get("usage", models.Usage, asked)


class Catalogue(Resource[World]):
    @call
    def list(self) -> Call[models.Models]:
        """Every model that has a price and can be called."""
        return get("models", models.Models)
