"""What is counted of webhooks, in the worker. With PROMETHEUS_MULTIPROC_DIR set, the gateways' /metrics shows it."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

ATTEMPTS = Counter(
    "obol_webhook_attempts_total", "Attempts to deliver an event: delivered, failed (tried again), dead", ["outcome"]
)
ATTEMPT_S = Histogram(
    "obol_webhook_attempt_seconds",
    "From the start of an attempt to the head of the answer, or to its failure",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
WAITING = Gauge("obol_webhook_events_waiting", "Events not delivered and not dead yet", multiprocess_mode="mostrecent")
OLDEST_S = Gauge("obol_webhook_oldest_waiting_seconds", "Age of the oldest of them", multiprocess_mode="mostrecent")
ENDPOINTS_PAUSED = Counter("obol_webhook_endpoints_paused_total", "Endpoints paused because they are gone or failing")
