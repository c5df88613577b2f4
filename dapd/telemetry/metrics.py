"""The daemon's counters and histograms, for Prometheus.

Names begin with ``dapd_``, units are base units, and label sets are closed: routes, outcomes,
states, names of transactions, peers of the tasks. Each daemon has its own registry, so that two can
run in one process. Gauges are read when they are scraped (``dapd.admin.gauges``).
``docs/metrics.md`` lists all metrics, and a test compares it with the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from dapd import __version__
from dapd.protocol.exchange import FINAL_COLLECTION_REFUSALS

# These would add a series to each counter, which says when the process started.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


Activity = Literal["upload", "aggregation", "collection", "garbage_collection", "key_rotation"]
AdminRefusal = Literal["host", "clear_text", "no_token", "unknown_token", "scope"]
"""Why the admin listener refuses a request."""


class Metrics:
    """The counters and histograms of one daemon."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = Info("dapd_build", "The running program.", registry=registry)
        build.info({"version": __version__})

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dapd_{name}", text, labels, registry=registry)

        def seconds(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _QUICK
        ) -> Histogram:
            return Histogram(
                f"dapd_{name}_seconds", text, labels, registry=registry, buckets=buckets
            )

        self.http_requests = counter("http_requests", "Requests answered.", "route", "status")
        self.http_seconds = seconds("http_request", "Time until the answer begins.", "route")
        self.step_seconds = seconds(
            "job_step", "Duration of job steps, including the wait for the peer.", "kind", "state",
            buckets=_SLOW,
        )  # fmt: skip
        self.steps_failed = counter("job_steps_failed", "Job steps that failed.", "kind")
        self.not_stepped = counter(
            "jobs_not_stepped", "Due jobs that a round of the dispatcher did not start.", "reason"
        )
        self.leases_lost = counter("leases_lost", "Job steps that lost their lease.")
        self.transaction_seconds = seconds(
            "transaction", "Duration of writing transactions.", "name"
        )
        self.transactions_failed = counter(
            "transactions_failed", "Transactions rolled back after an error.", "name"
        )
        self.native_seconds = seconds("native", "Duration of calls into Rust.", "call")
        self.peer_requests = counter("peer_requests", "Requests to peers.", "peer", "outcome")
        self.collections_refused = counter(
            "collections_refused", "Collections that the Helper refused for good.", "error"
        )
        self.gc_rows = counter("gc_deleted_rows", "Expired rows deleted.", "kind")
        self.gc_failures = counter("gc_failures", "Parts of garbage collections that failed.")
        self.admin_refused = counter(
            "admin_requests_refused", "Requests that the admin listener refused.", "reason"
        )
        self.loop_lag = seconds("event_loop_lag", "Event loop lag.")
        self._last_success = Gauge(
            "dapd_last_success_timestamp_seconds",
            "When each activity last succeeded in this process.",
            ["activity"],
            registry=registry,
        )
        # These start at 0, so that Prometheus sees the first event as an increase.
        for error in FINAL_COLLECTION_REFUSALS:
            self.collections_refused.labels(error)
        for kind in ("aggregation", "collection"):
            self.steps_failed.labels(kind)
        for reason in get_args(AdminRefusal):
            self.admin_refused.labels(reason)

    def succeeded(self, activity: Activity) -> None:
        """Record that an activity has succeeded now."""
        self._last_success.labels(activity).set_to_current_time()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all series in the format that the Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


Labels = tuple[str, ...]
"""Names of labels, or their values in the same order."""


def gauge(
    name: str, text: str, labels: Labels, samples: Mapping[Labels, float]
) -> GaugeMetricFamily:
    """Return a gauge with a sample for each combination of its labels' values."""
    family = GaugeMetricFamily(f"dapd_{name}", text, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def reading(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """Return a gauge without labels; ``None`` gives it no sample."""
    return gauge(name, text, (), {} if value is None else {(): value})


def instant(name: str, text: str, ms: int | None) -> GaugeMetricFamily:
    """Return a gauge of a moment, given in ms since the Epoch; ``None`` gives it no sample."""
    return reading(f"{name}_timestamp_seconds", text, None if ms is None else ms / 1000)
