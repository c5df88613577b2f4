"""Tasks that can't be worked on, whose reports all fail, or whose reports are about to be lost."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from dapd.admin.todo import COLLECT_WITHIN
from dapd.cli.doctor.database import Contents, Known
from dapd.cli.doctor.findings import Steps, check, failure, ok, skipped
from dapd.cli.task.files import digest
from dapd.crypto import Sealer
from dapd.datastore.tasks import UnreadableTask
from dapd.protocol.task import Task

_MISMATCHES = {
    "hpke_decrypt_error": "its TaskConfiguration is not the one that the reports are sealed for",
    "vdaf_verify_error": "the two Aggregators' verification keys differ",
    "invalid_message": "the VDAF's parameters differ",
}
"""What it means if no report ever gets further."""


@check("task")
def tasks(contents: Contents | None) -> Steps[None]:
    """Each task that is not deleted."""
    if contents is None:
        return
    if not contents.tasks:
        remedy = "dapd task add FILE, the task's leader.toml or helper.toml"
        yield skipped("", "there is none yet", remedy)
        return
    wrong = 0
    for known in contents.tasks:
        for found in _one(known, contents.sealer):
            wrong += 1
            yield found
    if not wrong:
        yield ok("", f"{len(contents.tasks)} of {len(contents.tasks)} can be worked on")


def _one(known: Known, sealer: Sealer | None) -> Steps[None]:
    name = known.sealed.id_text
    try:
        task = known.sealed.public()
        if sealer is not None:
            known.sealed.unseal(sealer)
    except UnreadableTask as error:
        yield failure(name, str(error), error.remedy)
        return
    uploads = _failing(known.counted, "upload", "accepted")
    if task.is_leader and uploads:
        yield failure(
            name,
            f"no report was ever accepted, refused were {_listed(uploads)}: {_meaning(uploads)}",
            f"compare the Clients' task files with `dapd task show {name}`: the SHA-256 of the "
            f"TaskConfiguration is {digest(task)} here",
        )
    if jobs := _failing(known.counted, "aggregate", "finished"):
        yield failure(
            name,
            f"no report was ever aggregated, rejected were {_listed(jobs)}: {_meaning(jobs)}",
            _to_compare(task, jobs),
        )
    before = known.collect_before
    if before is not None and before - time.time() * 1000 < COLLECT_WITHIN.total_seconds() * 1000:
        yield failure(
            name,
            f"uncollected reports expire from {_moment(before)} on",
            "have it collected before, or raise its report_expiry_age with `dapd task set`, the "
            "Helper's first",
        )


def _failing(counted: dict[str, int], interaction: str, good: str) -> dict[str, int]:
    """How many failed for which reason that a mismatch explains; nothing once one was good."""
    if counted.get(f"{interaction}_{good}"):
        return {}
    return {name: n for name in _MISMATCHES if (n := counted.get(f"{interaction}_{name}", 0))}


def _listed(failed: dict[str, int]) -> str:
    return ", ".join(f"{n} as {name}" for name, n in failed.items())


def _meaning(failed: dict[str, int]) -> str:
    return _MISMATCHES[max(failed, key=failed.__getitem__)]


def _to_compare(task: Task, failed: dict[str, int]) -> str:
    show = f"compare `dapd task show {task.id_text}` with the other Aggregator's"
    if max(failed, key=failed.__getitem__) == "vdaf_verify_error":
        return (
            f"{show}: verification_key_id must be the same; if it is, give both their keys again "
            "from files of one `dapd task new`, with `dapd task rekey FILE`"
        )
    return (
        f"{show}: configuration_sha256 must be the same, {digest(task)} here; if it is not, "
        "make a new task"
    )


def _moment(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%d %H:%M} UTC"
