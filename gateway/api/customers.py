"""Customers made and changed. What is read and deleted of them stands in connections.py."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api import paging
from gateway.api.connection_object import Connection
from gateway.api.connection_reader import ConnectionReader
from gateway.api.connections import OLDER_PATH, PATH, TAG
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation, Text
from gateway.api.reading import invalid
from gateway.billing.accounts import Accounts
from gateway.billing.principals import Merchant
from gateway.errors import ObolError

METADATA_MAX_BYTES = 16 * 1024
RESERVED_PREFIX = "con_"

Email = Annotated[str, Meta(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$", description="name@example.com")]
Phone = Annotated[str, Meta(min_length=1, max_length=50)]
Reference = Annotated[Text, Meta(description=f"Your own id of the customer. Does not begin with {RESERVED_PREFIX}.")]
Metadata = Annotated[dict[str, Any], Meta(description=f"At most {METADATA_MAX_BYTES} bytes as JSON.")]


class NewCustomer(msgspec.Struct):
    """Who the customer is; all of it optional, and a hint until a checkout has verified it."""

    reference_id: Reference | None = None
    email: Email | None = None
    phone: Phone | None = None
    name: Text | None = None
    metadata: Metadata | None = None


class ChangedCustomer(msgspec.Struct):
    """What changes; null clears."""

    reference_id: Reference | UnsetType | None = UNSET
    email: Email | UnsetType | None = UNSET
    phone: Phone | UnsetType | None = UNSET
    name: Text | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET


class CustomerRoutes:
    """The calls that make and change customers."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._reader = ConnectionReader(context)
        self._accounts = Accounts(
            context.store, context.wallets, context.derived, shards=context.settings.ledger_shards
        )

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "POST",
                PATH,
                self.create,
                "Create a customer, or retrieve the one with this reference_id",
                TAG,
                body=NewCustomer,
                answer=Connection,
                status=201,
                errors=("reference_id_taken",),
                aliases=(OLDER_PATH,),
            ),
            Operation(
                "PATCH",
                PATH + "/{id}",
                self.change,
                "Change a customer",
                TAG,
                body=ChangedCustomer,
                answer=Connection,
                errors=("connection_not_found", "reference_id_taken"),
                aliases=(OLDER_PATH + "/{id}",),
            ),
        ]

    async def create(self, call: Call[NewCustomer, Nothing]) -> Connection:
        merchant, given = call.merchant, _columns(call.body)
        reference = given["reference_id"]
        row = await self._referred(merchant, reference)
        if row is None:
            contact = {name: given[name] for name in ("email", "phone", "first_name", "last_name")}
            try:
                made = await self._accounts.create_customer(
                    merchant.merchant_id,
                    merchant.mode,
                    limit_nano=0,
                    reference_id=reference,
                    contact=contact,
                    metadata=given["metadata"],
                )
            except asyncpg.UniqueViolationError:  # the same call at the same time
                row = await self._referred(merchant, reference)
            else:
                await self._context.principals.changed(merchant.merchant_id)
                row = await self._reader.find(merchant, made.connection_id)
        if row is None:
            raise ObolError("reference_id_taken", "its customer was deleted just now; try again", param="reference_id")
        return await self._reader.show_one(merchant, row)

    async def _referred(self, merchant: Merchant, reference: str | None) -> asyncpg.Record | None:
        """The customer with exactly this reference id."""
        if reference is None:
            return None
        return next(iter(await self._reader.page(merchant, paging.NEWEST, 1, reference)), None)

    async def change(self, call: Call[ChangedCustomer, Nothing]) -> Connection:
        merchant = call.merchant
        row = await self._reader.find(merchant, call.path_id("connection_not_found"))
        if row["is_self"] and isinstance(call.body.reference_id, str):  # it is no customer: the id would find nothing
            raise invalid("reference_id", "cannot be that of your own connection")
        connection_id = row["connection_id"]
        values = _columns(call.body)
        given = [value is not UNSET for value in values.values()]
        values = {name: None if value is UNSET else value for name, value in values.items()}
        try:
            await self._context.store.execute(
                "connections.change", merchant.merchant_id, connection_id, *given, *values.values()
            )
        except asyncpg.UniqueViolationError:
            raise ObolError(
                "reference_id_taken", "another customer has this reference_id", param="reference_id"
            ) from None
        await self._context.principals.changed(merchant.merchant_id)
        return await self._reader.show_one(merchant, await self._reader.find(merchant, connection_id))


def _columns(body: NewCustomer | ChangedCustomer) -> dict[str, Any]:
    """The columns as the query `connections.change` takes them; UNSET where the body says nothing."""
    first_name, last_name = _split(body.name)
    return {
        "reference_id": _checked(body.reference_id),
        "email": _cleared(body.email),
        "phone": _cleared(body.phone),
        "first_name": first_name,
        "last_name": last_name,
        "metadata": _plain(body.metadata),
    }


def _cleared(text: str | UnsetType | None) -> str | UnsetType:
    return "" if text is None else text


def _split(name: str | UnsetType | None) -> tuple[str | UnsetType, str | UnsetType]:
    """First and last name, parted at the first space."""
    if isinstance(name, UnsetType):
        return UNSET, UNSET
    first, _, last = (name or "").strip().partition(" ")
    return first, last.strip()


def _checked(reference: str | UnsetType | None) -> str | UnsetType | None:
    """Ids and reference ids are accepted in the same places, so they must differ."""
    if isinstance(reference, str) and reference.startswith(RESERVED_PREFIX):
        raise invalid("reference_id", f"must not begin with {RESERVED_PREFIX}")
    return reference


def _plain(metadata: Mapping[str, Any] | UnsetType | None) -> dict[str, Any] | UnsetType | None:
    """Fractions as JSON numbers again."""
    if metadata is None or isinstance(metadata, UnsetType):
        return metadata
    found: dict[str, Any] = _floats(metadata)
    if len(msgspec.json.encode(found)) > METADATA_MAX_BYTES:
        raise invalid("metadata", f"must be at most {METADATA_MAX_BYTES} bytes as JSON")
    return found


def _floats(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_floats(each) for each in value]
    return value
