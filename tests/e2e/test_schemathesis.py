"""Generated calls of everything in the OpenAPI document: no 5xx, no answer outside its schema.

Three runs at a time: with a merchant's secret key the edges of every schema, and values drawn from it with sequences of
calls in which one's answer is the next one's id; and without any key.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from demonstration import Demonstration

CALLS_MIN = 10_000
RUN_TIMEOUT_S = 300
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
OPTIONS = (
    "--exclude-tag=Gateway",  # what these answer is their provider's
    "--exclude-operation-id-regex=^(delete|post)_v1_secret_keys_id",  # they would end the key of the run
    f"--checks={','.join(CHECKS)}",
    "--continue-on-failure",
    "--no-shrink",
    "--no-color",
    "--warnings=off",
    "--suppress-health-check=all",
    "--generation-database=none",
    f"--seed={os.environ.get('OBOL_FUZZ_SEED', '1')}",
    "--report=json",
)


@pytest.mark.timeout(RUN_TIMEOUT_S + 60)
def test_generated_calls_are_answered_as_documented(
    demo: Demonstration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = demo.make_merchant("generated", "Generated calls").secret_key
    runs = {
        "edges": start(demo, tmp_path / "edges", key, "--phases=coverage"),
        "drawn": start(demo, tmp_path / "drawn", key, "--phases=fuzzing,stateful", "--mode=positive", "-n", "16"),
        "nobody": start(demo, tmp_path / "nobody", None, "--phases=coverage", "--exclude-deprecated"),
    }
    reports = {name: report(run, tmp_path / name) for name, run in runs.items()}
    calls = {name: told["test_cases"]["generated"] for name, told in reports.items()}
    with capsys.disabled():
        print(f"\ngenerated calls: {sum(calls.values())}, of which {calls}")
    assert sum(calls.values()) >= CALLS_MIN
    assert asked(demo, "GET", "/v1/meters", key)["data"], "the key of the run was revoked: most calls were refused"


def start(demo: Demonstration, directory: Path, key: str | None, *options: str) -> subprocess.Popen[bytes]:
    directory.mkdir()
    header = [f"--header=Authorization: Bearer {key}"] if key else []
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "known_ids",
        "PYTHONPATH": str(Path(__file__).parent),
        "KNOWN_IDS": json.dumps(made(demo, key) if key else {}),
    }
    with (directory / "said").open("wb") as said:
        return subprocess.Popen(
            [
                Path(sys.executable).with_name("st"),
                "run",
                f"{demo.url}/openapi.json",
                *OPTIONS,
                f"--report-json-path={directory / 'report.json'}",
                *header,
                *options,
            ],
            cwd=directory,
            env=environment,
            stdout=said,
            stderr=said,
        )


def report(run: subprocess.Popen[bytes], directory: Path) -> Any:
    """What a run tells, which found nothing."""
    try:
        code = run.wait(RUN_TIMEOUT_S)
    finally:
        run.kill()
    said = (directory / "said").read_text()
    assert code == 0, said[-20_000:]
    told = json.loads((directory / "report.json").read_text())
    assert (told["failures"], told["errors"]) == ([], [])
    assert told["operations"]["tested"] == told["operations"]["selected"] > 50
    return told


def asked(demo: Demonstration, method: str, path: str, key: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        demo.url + path,
        method=method,
        data=json.dumps(body or {}).encode(),
        headers={"Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def made(demo: Demonstration, key: str) -> dict[str, Any]:
    """One of each resource of the key's merchant, by the name in its path, and what some calls need to succeed."""
    tiers = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "2"}]}
    meter = asked(demo, "POST", "/v1/meters", key, {"name": "Tokens", **tiers})["meter_id"]
    customer = asked(demo, "POST", "/v1/customers", key, {"reference_id": f"user-{meter[-8:]}"})["customer_id"]
    usage = {"request_id": f"r-{meter[-8:]}", "customer_id": customer, "meter_id": meter, "input_tokens": 7}
    plan = {"name": "Paid", "period_amount": "25", "billing_interval": "month", "meter_ids": [meter]}
    bundles = [{"name": "Bundle", "cost": "5", "credit_amount": "6"}]
    paid = asked(demo, "POST", "/v1/plans", key, {**plan, "credit_bundles": bundles})
    free = asked(demo, "POST", "/v1/plans", key, {**plan, "name": "Free of charge", "period_amount": "0"})
    subscribed = {"customer_id": customer, "plan_id": free["plan_id"]}
    names = {"customer_id": customer, "meter_id": meter}
    webhook = {"name": "W", "url": "https://example.com/w"}
    return {
        "meters": meter,
        "products": meter,
        "customers": customer,
        "connections": customer,
        "requests": asked(demo, "POST", "/v1/requests", key, usage)["request_id"],
        "plans": paid["plan_id"],
        "subscription_configs": paid["plan_id"],
        "credit_bundles": paid["credit_bundles"][0]["credit_bundle_id"],
        "subscriptions": asked(demo, "POST", "/v1/subscriptions", key, subscribed)["subscription"]["subscription_id"],
        "webhooks": asked(demo, "POST", "/v1/webhooks", key, webhook)["webhook_id"],
        "spend_keys": asked(demo, "POST", "/v1/spend_keys", key, {"name": "S"})["spend_key_id"],
        "fields": {
            "POST /v1/requests": names,
            "GET /v1/requests": names,
            "GET /v1/usage": {**names, "start": "2026-01-01", "end": "2026-06-30", "metadata_filters": '[["a","b"]]'},
            "POST /v1/subscriptions": subscribed,
            "POST /v1/flex/checkout_sessions": {"plan_id": paid["plan_id"]},
        },
    }
