"""Add a point to the last hour's history (``dapd.runtime.history``) twice a minute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from dapd.datastore import Tx, counters
from dapd.datastore.backlog import whole_backlog
from dapd.datastore.counters import TaskTotals
from dapd.errors import DatastoreError
from dapd.runtime.context import Context
from dapd.runtime.history import Totals
from dapd.telemetry.metrics import Metrics

EVERY = 30.0


Look = Callable[[Context], Awaitable[None]]


async def take(context: Context) -> None:
    """Add a point from one reading transaction and the metrics. Raises ``DatastoreError``."""
    tasks, unfinished = await context.read(_read)
    now = _totals(tasks, context.metrics)
    context.history.add(now, unfinished=unfinished, queued=context.uploads.waiting)


async def run(context: Context, look: Look = take) -> None:
    """Add a point every 30 seconds until the daemon drains."""
    while True:
        # The next point covers this time too, and other code logs what is wrong with the database.
        with suppress(DatastoreError):
            await look(context)
        with trio.move_on_after(EVERY):
            await context.draining.wait()
            return


def _read(tx: Tx) -> tuple[dict[bytes, TaskTotals], int]:
    found = whole_backlog(tx)
    jobs = sum(row.jobs for row in (*found.aggregation_jobs, *found.collection_jobs))
    return counters.by_task(tx), jobs


def _totals(tasks: dict[bytes, TaskTotals], metrics: Metrics) -> Totals:
    errors = sum(
        sample.value
        for family in metrics.http_requests.collect()
        for sample in family.samples
        if sample.labels["status"].startswith("5")
    )
    lateness = {
        sample.name: sample.value
        for family in metrics.loop_lag.collect()
        for sample in family.samples
    }
    late, sleeps = (lateness[f"dapd_event_loop_lag_seconds_{end}"] for end in ("sum", "count"))
    return Totals(trio.current_time(), tasks, errors, late, sleeps)
