"""Metrics of this process and its machine: queues, peers, clock, certificate, disk.

Left out: those of the database (``dapd.admin.gauges``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric

from dapd.datastore.backup import last_backup
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer
from dapd.telemetry.metrics import Labels, gauge, instant, reading


def process(context: Context) -> Iterator[Metric]:
    """Yield all metrics but the disk's; this never blocks."""
    yield reading(
        "upload_queue_requests",
        "Upload requests that wait for their group.",
        context.uploads.waiting,
    )
    yield reading("replay_index_ids", "Report ids in memory.", len(context.datastore.replay))
    yield from _peers(context)
    yield from _clock(context)
    yield instant(
        "certificate_expiry",
        "When the first certificate of a listener expires.",
        context.certificates.not_after,
    )


def disk(database: Path, refused_below: int) -> list[Metric]:
    """Return the file system's metrics, which may block. ``refused_below`` is in bytes."""
    found = os.statvfs(database.parent)
    wal = database.with_name(database.name + "-wal")
    backup = last_backup(database)
    return [
        reading(
            "disk_free_bytes", "Free space beside the database.", found.f_bavail * found.f_frsize
        ),
        reading(
            "disk_refused_below_bytes", "Uploads are refused while less is free.", refused_below
        ),
        reading("database_bytes", "The database file.", _size(database)),
        reading("wal_bytes", "Its write-ahead log.", _size(wal)),
        instant(
            "backup_last_success",
            "The time of what the last backup holds.",
            None if backup is None else backup.state_of,
        ),
    ]


def _peers(context: Context) -> Iterator[Metric]:
    peers: dict[Labels, Peer] = {
        (each,): context.peers.at(each) for each in context.tasks.helpers()
    }
    label, now = ("peer",), context.now()
    down = {
        name: (now - passed) / 1000
        for name, peer in peers.items()
        if (passed := peer.down_for) is not None
    }
    yield gauge(
        "peer_down_since_timestamp_seconds",
        "Since when no answer has served: no connection, 429 or 5xx.",
        label,
        down,
    )
    yield gauge(
        "peer_failures",
        "Requests in a row that met no answer at all.",
        label,
        {name: peer.failures for name, peer in peers.items()},
    )
    yield gauge(
        "peer_back_off_seconds",
        "How much longer no request is begun.",
        label,
        {name: max(peer.blocked_for, 0) / 1000 for name, peer in peers.items()},
    )
    yield gauge(
        "peer_paused",
        "1 while an operator has paused the peer.",
        label,
        {name: int(peer.paused) for name, peer in peers.items()},
    )
    yield gauge(
        "peer_permits_free",
        "Requests that may start now.",
        label,
        {name: max(peer.free, 0) for name, peer in peers.items()},
    )


def _clock(context: Context) -> Iterator[Metric]:
    state = context.safe_clock.look()
    yield reading(
        "clock_held",
        "1 while the clock is in doubt and nothing expires.",
        int(state.held is not None),
    )
    yield instant("safe_clock", "The time by which data expires.", state.safe)
    yield gauge(
        "clock_offset_seconds",
        "How far a peer's clock is ahead of ours, by its last answer.",
        ("origin",),
        {(origin,): ahead / 1000 for origin, ahead in state.offsets.items()},
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
