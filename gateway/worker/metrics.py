"""What the background worker counts. With PROMETHEUS_MULTIPROC_DIR set, the gateways' /metrics shows it."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

FLUSH_LAG = Gauge(
    "obol_flush_lag_seconds",
    "Age of the oldest journal entry that PostgreSQL does not have yet, over all shards",
    multiprocess_mode="mostrecent",
)
FLUSH_BATCH = Histogram(
    "obol_flush_batch_entries",
    "Journal entries carried by one transaction",
    buckets=(1, 10, 50, 100, 500, 1_000, 2_000, 5_000, 10_000),
)
FLUSH_ENTRIES = Counter("obol_flush_entries_total", "Journal entries carried to PostgreSQL")
FLUSH_REJECTS = Counter("obol_flush_rejects_total", "Journal entries kept in flush_rejects")
FLUSH_ALARMS = Counter("obol_flush_alarms_total", "Contradictions between journal and ledger", ["kind"])
HOLDS_EXPIRED = Counter("obol_holds_expired_total", "Holds of dead gateways that the reaper ended")
GRANTS_APPLIED = Counter("obol_grants_applied_total", "Grants that the worker applied in Redis")
TURNS = Counter("obol_turns_total", "Cycles of subscriptions that were turned", ["kind"])
TURNS_APPLIED_LATE = Counter("obol_turns_applied_late_total", "Turns that were not applied when they were written")
CYCLES_OVERDUE = Gauge(
    "obol_cycles_overdue_seconds",
    "How long the cycle that ended first, in real time, has waited for its turn",
    multiprocess_mode="mostrecent",
)
CHARGES = Counter(
    "obol_charges_total", "Answers of the card processor about charges, and failures to get one", ["kind", "outcome"]
)
CHARGES_OPEN = Gauge("obol_charges_open", "Charges that are not concluded", multiprocess_mode="mostrecent")
CHARGES_OLDEST_S = Gauge(
    "obol_charges_oldest_open_seconds",
    "For how long the oldest of them has been without an answer",
    multiprocess_mode="mostrecent",
)
CONNECTIONS_LIMITED = Gauge(
    "obol_connections_limited",
    "Customers whose card was declined, and who may owe nothing more until they have paid",
    multiprocess_mode="mostrecent",
)
TICK_ERRORS = Counter("obol_worker_tick_errors_total", "Failed rounds of the worker's loops", ["loop"])
LOST_ENTRIES = Counter("obol_ledger_lost_entries_total", "Recorded journal entries that Redis was found to have lost")
WALLETS_RESTORED = Counter("obol_wallets_restored_total", "Wallets put into use again from what PostgreSQL recorded")
