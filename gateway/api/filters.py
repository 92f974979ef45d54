"""The filters that the request list and the usage report share, as SQL conditions with arguments."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gateway.api.operation import agreed
from gateway.api.reading import TEXT_MAX_CHARACTERS, Named, invalid
from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.store.postgres import Store
from gateway.store.secrets import digest

CUSTOMER_FIELDS = ("connection_secret", "connection_id", "customer_id", "reference_id")
METER_FIELDS = ("product_secret", "meter_secret", "meter_slug", "meter_id", "product_id")
PAIRS_MAX = 100

_PAIRS = msgspec.json.Decoder(list[tuple[str, str]])


Name = Annotated[str, msgspec.Meta(max_length=TEXT_MAX_CHARACTERS)]
"""An id, secret, slug or reference id. An empty one is absent."""


class CustomerAndMeter(msgspec.Struct, kw_only=True):
    """Either may be named by id, secret, slug or reference id, under any of the names that it had over the eras."""

    connection_secret: Name | None = None
    connection_id: Name | None = None
    customer_id: Name | None = None
    reference_id: Name | None = None
    product_secret: Name | None = None
    meter_secret: Name | None = None
    meter_slug: Name | None = None
    meter_id: Name | None = None
    product_id: Name | None = None


class Filtered(CustomerAndMeter, kw_only=True):
    """The query parameters of every filter."""

    metadata_filters: Annotated[
        str | None, msgspec.Meta(description='Pairs that all must match, as JSON: [["key","value"]].')
    ] = None


class Filters(msgspec.Struct, frozen=True):
    """Resolved filters; all must hold."""

    connection_id: str | None = None
    meter_id: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def apply(self, sql: str, arguments: list[Any]) -> tuple[str, list[Any]]:
        """`sql` with its places {scope} (indexed columns) and {pairs} (metadata) filled, and all its arguments.

        A condition is there only if it is asked for, so that every plan can use the index it fits. Each pair is a
        condition of its own: a key asked for with two values matches nothing.
        """
        columns = {"connection_id": self.connection_id, "meter_id": self.meter_id}
        scope = [(f"{name} =", value) for name, value in columns.items() if value is not None]
        pairs = [("metadata @>", {key: value}) for key, value in self.metadata]
        sql = sql.replace("{scope}", _conditions(scope, len(arguments) + 1))
        sql = sql.replace("{pairs}", _conditions(pairs, len(arguments) + len(scope) + 1))
        return sql, [*arguments, *(value for _, value in scope + pairs)]


def _conditions(operations: list[tuple[str, Any]], first: int) -> str:
    return "".join(f" AND {operator} ${first + index}" for index, (operator, _) in enumerate(operations))


async def read(store: Store, merchant: Merchant, query: Filtered) -> Filters:
    """Read and resolve the filters of a query. What was deleted can still be asked for.

    Raise ObolError `invalid_request`, `connection_not_found` or `meter_not_found` naming the parameter.
    """
    pairs = _metadata(query.metadata_filters)
    connection, meter = agreed(query, *CUSTOMER_FIELDS), agreed(query, *METER_FIELDS)
    return Filters(
        await _resolve(store, merchant, "connection", connection) if connection else None,
        await _resolve(store, merchant, "meter", meter) if meter else None,
        pairs,
    )


async def _resolve(store: Store, merchant: Merchant, kind: str, named: Named) -> str:
    row = await store.row(f"{kind}s.resolve", merchant.merchant_id, named.value, digest(named.value))
    if row is None:
        raise ObolError(f"{kind}_not_found", f"{named.field} names no {kind} of yours", param=named.field)
    return str(row[0])


def _metadata(given: str | None) -> tuple[tuple[str, str], ...]:
    if not given:
        return ()
    try:
        pairs = _PAIRS.decode(given)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise invalid("metadata_filters", 'must be a JSON list of pairs of strings such as [["key","value"]]') from None
    if len(pairs) > PAIRS_MAX:
        raise invalid("metadata_filters", f"has more than {PAIRS_MAX} pairs")
    if any("\x00" in key + value for key, value in pairs):
        raise invalid("metadata_filters", "has a NUL character")
    return tuple(pairs)
