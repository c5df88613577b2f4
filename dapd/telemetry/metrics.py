"""What the daemon counts and times, for Prometheus.

Names begin with ``dapd_``, units are base units, label sets are closed: routes, outcomes, states,
the names of transactions, the peers of its tasks. Each daemon has a registry of its own, so that
two may live in one process. What is a state, not an event, is read when it is asked for
(``dapd.admin.gauges``). ``docs/metrics.md`` lists every one, and a test compares.
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

# A series each, which all say when the process started.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


Activity = Literal["upload", "aggregation", "collection", "garbage_collection", "key_rotation"]
AdminRefusal = Literal["host", "clear_text", "no_token", "unknown_token", "scope"]
"""Why the admin listener turns a request away."""


class Metrics:
    """Every counter and histogram of one daemon."""

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
        self.http_seconds = seconds("http_request", "Time until the answer.", "route")
        self.step_seconds = seconds(
            "job_step", "Steps of jobs, the wait for the peer included.", "kind", "state",
            buckets=_SLOW,
        )  # fmt: skip
        self.steps_failed = counter("job_steps_failed", "Steps that ended in an error.", "kind")
        self.not_stepped = counter(
            "jobs_not_stepped", "Due jobs that a round of the dispatcher left alone.", "reason"
        )
        self.leases_lost = counter("leases_lost", "Steps whose lease another one had taken.")
        self.transaction_seconds = seconds("transaction", "Writing transactions.", "name")
        self.transactions_failed = counter("transactions_failed", "Undone by an error.", "name")
        self.native_seconds = seconds("native", "Calls on whole jobs in Rust.", "call")
        self.peer_requests = counter("peer_requests", "Requests to peers.", "peer", "outcome")
        self.collections_refused = counter(
            "collections_refused", "Collections that the Helper refused for good.", "error"
        )
        self.gc_rows = counter("gc_deleted_rows", "Rows taken away as expired.", "kind")
        self.gc_failures = counter("gc_failures", "Rounds that ended in an error.")
        self.admin_refused = counter(
            "admin_requests_refused", "Requests turned away at the admin listener.", "reason"
        )
        self.loop_lag = seconds("event_loop_lag", "How late the event loop wakes a sleeper.")
        self._last_success = Gauge(
            "dapd_last_success_timestamp_seconds",
            "When each activity last succeeded in this process.",
            ["activity"],
            registry=registry,
        )
        # What is counted for the first time must be seen to rise: it begins at 0.
        for error in FINAL_COLLECTION_REFUSALS:
            self.collections_refused.labels(error)
        for kind in ("aggregation", "collection"):
            self.steps_failed.labels(kind)
        for reason in get_args(AdminRefusal):
            self.admin_refused.labels(reason)

    def succeeded(self, activity: Activity) -> None:
        """Something that must happen now and then has happened."""
        self._last_success.labels(activity).set_to_current_time()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All series in the form that the Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


Labels = tuple[str, ...]
"""The labels' names, or their values in the same order."""


def gauge(
    name: str, text: str, labels: Labels, samples: Mapping[Labels, float]
) -> GaugeMetricFamily:
    """A family of states as they are now, by their labels' values."""
    family = GaugeMetricFamily(f"dapd_{name}", text, labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def reading(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    """A family of one state; without a sample while there is nothing to read."""
    return gauge(name, text, (), {} if value is None else {(): value})


def instant(name: str, text: str, ms: int | None) -> GaugeMetricFamily:
    """A moment, given in ms since the Epoch, as a ``reading``."""
    return reading(f"{name}_timestamp_seconds", text, None if ms is None else ms / 1000)
