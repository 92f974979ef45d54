"""Every route of the API."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.api.checkout_sessions import CheckoutSessionRoutes
from gateway.api.connections import ConnectionRoutes
from gateway.api.context import ApiContext
from gateway.api.credit_bundles import CreditBundleRoutes
from gateway.api.customers import CustomerRoutes
from gateway.api.flex import FlexRoutes
from gateway.api.login import LoginRoutes
from gateway.api.meters import MeterRoutes
from gateway.api.models import ModelRoutes
from gateway.api.operation import Operation
from gateway.api.operation import routes as operation_routes
from gateway.api.plans import PlanRoutes
from gateway.api.processor_events import ProcessorEventRoutes
from gateway.api.provider_keys import ProviderKeyRoutes
from gateway.api.published import Published
from gateway.api.requests import RequestRoutes
from gateway.api.responses import errors_as_json
from gateway.api.secret_keys import SecretKeyRoutes
from gateway.api.services import ServiceRoutes
from gateway.api.spend_keys import SpendKeyRoutes
from gateway.api.subscriptions import SubscriptionRoutes
from gateway.api.test_clock import ClockRoutes
from gateway.api.usage import UsageRoutes
from gateway.api.wallet import WalletRoutes
from gateway.api.wallet_keys import WalletKeyRoutes
from gateway.api.webhook_deliveries import WebhookDeliveryRoutes
from gateway.api.webhooks import WebhookRoutes


class Resource(Protocol):
    """A module's class that lists its calls."""

    def __init__(self, context: ApiContext) -> None: ...

    def operations(self) -> list[Operation]: ...


def routes(context: ApiContext) -> list[web.RouteDef]:
    """For `app.add_routes`; the application needs `middlewares()` too."""
    table = operations(context)
    pages = [*Published(table).routes(), *LoginRoutes(context).pages(), *ProcessorEventRoutes(context).routes()]
    return [_expecting(route) for route in [*operation_routes(context, table), *pages]]


def operations(context: ApiContext) -> list[Operation]:
    """Every call of the API, as the OpenAPI document shows it."""
    resources: tuple[type[Resource], ...] = (
        CheckoutSessionRoutes,
        ConnectionRoutes,
        CustomerRoutes,
        FlexRoutes,
        PlanRoutes,
        CreditBundleRoutes,
        SubscriptionRoutes,
        ClockRoutes,
        RequestRoutes,
        UsageRoutes,
        MeterRoutes,
        ModelRoutes,
        ServiceRoutes,
        SecretKeyRoutes,
        SpendKeyRoutes,
        WalletRoutes,
        WalletKeyRoutes,
        ProviderKeyRoutes,
        LoginRoutes,
        WebhookRoutes,
        WebhookDeliveryRoutes,
    )
    return [each for resource in resources for each in resource(context).operations()]


def _expecting(route: web.RouteDef) -> web.RouteDef:
    """A body is asked for when it is read (`reading`), not before it is known to be wanted."""
    return web.RouteDef(route.method, route.path, route.handler, {**route.kwargs, "expect_handler": _no_answer_yet})


async def _no_answer_yet(request: web.Request) -> None:
    """In the place of aiohttp's, which asks for the body at once."""


def middlewares() -> list[Middleware]:
    """What the application needs for the routes: every error is answered in JSON."""
    return [errors_as_json]
