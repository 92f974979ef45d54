"""What a type checker makes of both clients. `make lint` reads it; nothing runs it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import assert_type

from obol_sdk import AsyncObol, AsyncPage, Obol, Page
from obol_sdk.models import Customer, Meter


def of_the_blocking_client(obol: Obol) -> None:
    assert_type(obol.customers.retrieve("con_1"), Customer)
    assert_type(obol.connections.list(limit=5), Page[Customer])
    obol.meters.retrieve(3)  # type: ignore[arg-type]
    obol.meters.list(limits=3)  # type: ignore[call-arg]
    for meter in obol.meters.list():
        assert_type(meter, Meter)


async def of_the_asyncio_client(obol: AsyncObol) -> None:
    assert_type(obol.customers.retrieve("con_1"), Awaitable[Customer])
    assert_type(await obol.customers.list(), AsyncPage[Customer])
    await obol.meters.create(name="Chat")  # type: ignore[call-arg]
    async for meter in await obol.meters.list():
        assert_type(meter, Meter)
