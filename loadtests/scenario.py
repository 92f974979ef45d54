"""The requests of a scenario, prepared as bytes before the clock starts.

The directive `[[fake chunks=N chunk_delay_ms=M]]` in the user's message tells a fake provider what to stream; a real
provider reads it as text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from loadtests.plan import Plan, PlanError

COMPLETIONS_URL = "https://api.openai.com/v1/chat/completions"
NUMBER_WIDTH = 12
SHUFFLE_SEED = 7


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of request: the whole of it as bytes, around a number that makes each one unique where needed."""

    kind: str
    before: bytes
    after: bytes = b""
    numbered: bool = False
    streams: bool = False

    def render(self, number: int) -> bytes:
        if not self.numbered:
            return self.before
        return b"%b%0*d%b" % (self.before, NUMBER_WIDTH, number, self.after)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Templates in the order in which they are sent, round and round."""

    order: tuple[Template, ...]

    def template(self, number: int) -> Template:
        return self.order[number % len(self.order)]


def build(plan: Plan) -> Scenario:
    """The scenario of `plan`. Raise PlanError naming the flag that is missing."""
    if plan.scenario != "mixed":
        return Scenario((_template(plan, plan.scenario),))
    unknown = set(plan.weights) - {"chat", "stream", "reports"}
    if unknown:
        raise PlanError(f"--weights: {', '.join(sorted(unknown))} is not chat, stream or reports")
    order = [kind for kind, weight in plan.weights.items() for _ in range(weight)]
    if not order:
        raise PlanError("--weights gives every kind a weight of 0")
    templates = {kind: _template(plan, kind) for kind in set(order)}
    random.Random(SHUFFLE_SEED).shuffle(order)
    return Scenario(tuple(templates[kind] for kind in order))


def _template(plan: Plan, kind: str) -> Template:
    if kind == "reports":
        return _reports(plan)
    body = _completion_body(plan, stream=kind == "stream")
    path = plan.path or completions_path(plan.target)
    return Template(kind, _head(plan, path, len(body), plan.key) + body, streams=kind == "stream")


def completions_path(target: str) -> str:
    """Where `target` takes chat completions: a base URL `.../v1/` is an Obol gateway's, a bare origin is a provider's
    or a transparent proxy's, any other path is meant as it stands."""
    parts = urlsplit(target)
    if parts.path.rstrip("/").endswith("/v1"):
        return f"{parts.path.rstrip('/')}/forward?u={COMPLETIONS_URL}"
    if parts.path in ("", "/"):
        return "/v1/chat/completions"
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _completion_body(plan: Plan, *, stream: bool) -> bytes:
    message = "word " * (plan.prompt_bytes // 5 + 1)
    body: dict[str, object] = {"model": plan.model, "max_tokens": plan.max_tokens}
    text = message[: plan.prompt_bytes]
    if stream:
        text += f" [[fake chunks={plan.chunks} chunk_delay_ms={plan.chunk_interval_ms}]]"
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return orjson.dumps(body | {"messages": [{"role": "user", "content": text}]})


def _reports(plan: Plan) -> Template:
    if not plan.meter_slug or not plan.connection_id:
        raise PlanError("the reports scenario needs --meter-slug and --connection-id, or a --demo-file that has both")
    fields = {"connection_id": plan.connection_id, "meter_slug": plan.meter_slug, "input_tokens": 100}
    start = b'{"request_id":"load-' + plan.run_id.encode() + b"-"
    end = b'",' + orjson.dumps(fields)[1:]
    length = len(start) + NUMBER_WIDTH + len(end)
    path = urlsplit(plan.target).path.rstrip("/") + "/requests"
    return Template("reports", _head(plan, path, length, plan.secret_key or plan.key) + start, end, numbered=True)


def _head(plan: Plan, path: str, length: int, key: str) -> bytes:
    if any(character in key for character in "\r\n") or any(c.isspace() for c in path):
        raise PlanError("--key, --secret-key and --path must not contain line breaks or spaces")
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(plan.target).netloc.rpartition('@')[2]}",
        "User-Agent: obol-loadtests",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode()
