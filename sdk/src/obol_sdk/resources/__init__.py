"""Every call of the API. Each is described once, for both clients: see `call`.

Optional parameters: None leaves a field as it is or unset. Where a field can be cleared, its default is UNSET, and None
clears it. Amounts are `Decimal`, text or int.
"""

from obol_sdk.resources.checkout import CheckoutSessions
from obol_sdk.resources.clock import Clock
from obol_sdk.resources.customers import Customers, Subscriptions
from obol_sdk.resources.keys import ProviderKeys, SecretKeys, SpendKeys
from obol_sdk.resources.plans import CreditBundles, Meters, Plans
from obol_sdk.resources.reports import Catalogue, Requests, UsageReports
from obol_sdk.resources.webhooks import Webhooks

__all__ = [
    "Catalogue",
    "CheckoutSessions",
    "Clock",
    "CreditBundles",
    "Customers",
    "Meters",
    "Plans",
    "ProviderKeys",
    "Requests",
    "SecretKeys",
    "SpendKeys",
    "Subscriptions",
    "UsageReports",
    "Webhooks",
]
