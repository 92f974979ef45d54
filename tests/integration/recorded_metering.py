"""What the gateway makes of a recorded exchange, without network: request read, response fed to the meter."""

from __future__ import annotations

from typing import NamedTuple

from recorded_exchanges import Recorded

from gateway import providers
from gateway.local.fake.replay import ENCODE_HEADER, recorded_reply
from gateway.wire.contract import Reading
from gateway.wire.formats import FORMATS

LIMIT_BYTES = 64 * 1024 * 1024
HUGGING_FACE = {"fireworks": "huggingface_fireworks-ai"}


class Metered(NamedTuple):
    """`provider`: whose price is asked for. `asked`: the model of the request."""

    provider: str
    format: str
    asked: str | None
    reading: Reading
    free: bool


def metered(table: providers.Providers, one: Recorded) -> Metered:
    """Raise ObolError where the request itself is refused."""
    row = table.by_origin(one.origin, one.path)
    name = row.name if row is not None else _published_name(one)
    format_name = (row.format_of if row is not None else table.format_elsewhere)(one.exchange.method, one.path)
    reader = FORMATS[format_name]
    facts = reader.read_request(one.sent_body, one.path, one.exchange.path.partition("?")[2])
    headers = {key.lower(): value for key, value in one.record["response_headers"].items()}
    meter = reader.meter(
        facts,
        provider=name,
        content_type=headers.get("content-type", ""),
        hide_usage=False,
        limit_bytes=LIMIT_BYTES,
    )
    meter.feed(b"".join(recorded_reply(one.exchange, {ENCODE_HEADER: "identity"})[1]))
    meter.finish()
    return Metered(name, format_name, facts.model, meter.reading(), facts.free or format_name == "plain")


def _published_name(one: Recorded) -> str:
    """Of a provider outside the table: what genai-prices calls it."""
    name = str(one.record["provider"])
    return HUGGING_FACE.get(name, f"huggingface_{name}") if one.exchange.host == "router.huggingface.co" else name
