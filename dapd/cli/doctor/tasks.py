"""Check tasks: unreadable ones, ones whose reports all fail or are about to be lost."""

from __future__ import annotations

from datetime import UTC, datetime

from dapd.admin.operation import rfc3339_or_never
from dapd.advice import upkeep
from dapd.cli.doctor.database import Contents, Known
from dapd.cli.doctor.findings import Steps, check, failure, ok, skipped
from dapd.cli.task.files import digest
from dapd.crypto import Sealer
from dapd.datastore.tasks import UnreadableTask
from dapd.protocol.task import Task
from dapd.wording import count

_MISMATCHES = {
    "hpke_decrypt_error": "the reports are sealed for another TaskConfiguration",
    "vdaf_verify_error": "the two Aggregators' verification keys differ",
    "invalid_message": "the VDAF's parameters differ",
}
"""What it means if no report ever gets past this error."""


@check("task")
def tasks(contents: Contents | None) -> Steps[None]:
    """Check each task that is not deleted."""
    if contents is None:
        return
    if not contents.tasks:
        remedy = "`dapd task add FILE` with the task's leader.toml or helper.toml"
        yield skipped("", "there is no task yet", remedy)
        return
    wrong = 0
    for known in contents.tasks:
        for found in _one(known, contents.sealer):
            wrong += 1
            yield found
    if not wrong:
        yield ok("", f"{count(len(contents.tasks), 'task')}, nothing wrong")


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
            f"no upload was ever accepted: {_meaning(uploads)} ({_listed(uploads)})",
            f"compare the Clients' task files with `dapd task show {name}`; configuration_sha256 "
            f"is {digest(task)} here",
        )
    if jobs := _failing(known.counted, "aggregate", "finished"):
        yield failure(
            name,
            f"no report was ever aggregated: {_meaning(jobs)} ({_listed(jobs)})",
            _to_compare(task, jobs),
        )
    before = rfc3339_or_never(known.collect_before)
    if (advice := upkeep.collection(name, before, datetime.now(UTC))) is not None:
        yield failure(name, advice.what, advice.remedy)


def _failing(counted: dict[str, int], interaction: str, good: str) -> dict[str, int]:
    """Return the failures that a mismatch explains; none once any report succeeded."""
    if counted.get(f"{interaction}_{good}"):
        return {}
    return {name: n for name in _MISMATCHES if (n := counted.get(f"{interaction}_{name}", 0))}


def _listed(failed: dict[str, int]) -> str:
    return ", ".join(f"{name}: {n}" for name, n in failed.items())


def _meaning(failed: dict[str, int]) -> str:
    return _MISMATCHES[max(failed, key=failed.__getitem__)]


def _to_compare(task: Task, failed: dict[str, int]) -> str:
    show = f"compare `dapd task show {task.id_text}` with the other Aggregator's"
    if max(failed, key=failed.__getitem__) == "vdaf_verify_error":
        return (
            f"{show}: verification_key_id must be the same; if it is, run `dapd task rekey FILE` "
            "on both sides, with files of one `dapd task new`"
        )
    return (
        f"{show}: configuration_sha256 must be the same, and is {digest(task)} here; if it "
        "differs, make a new task"
    )
