"""Advice about the daemon, its machine and its tasks.

Functions return ``None`` while there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from dapd.advice import Advice
from dapd.advice.thresholds import BACKUP_AGE, CERTIFICATE_LEFT, COLLECT_WITHIN
from dapd.wording import count, moment

MAKE_ROOM = "make room, or lower [disk] min_free_bytes and `dapd reload`"
SET_CLOCK = "set this machine's clock; if it is right already, `dapd clock accept`"
RENEW_CERTIFICATE = "renew it, then `dapd reload`"
COMPARE_RESTORED = "compare `dapd restore status` with the peer, then `dapd restore accept`"


def disk(free: int, refused_below: int) -> Advice | None:
    """Advise on a disk with less room than ``[disk] min_free_bytes``. Both are in bytes."""
    if free >= refused_below:
        return None
    what = (
        f"has {free >> 20} MiB free; below {refused_below >> 20} MiB the daemon refuses uploads "
        "and new jobs"
    )
    return Advice("the disk", what, MAKE_ROOM)


def hpke_keys(states: Sequence[str]) -> Advice | None:
    """Advise if none of the HPKE keys, with these states, is active."""
    if "active" in states:
        return None
    return Advice("", "no HPKE key is active, so nobody can upload", "`dapd key add --active`")


def clock(held: str | None) -> Advice | None:
    """Advise on a safe clock that is held, for this reason."""
    if held is None:
        return None
    return Advice("the clock", f"is held ({held}), and nothing expires", SET_CLOCK)


def collection(task: str, collect_before: datetime | None, now: datetime) -> Advice | None:
    """Advise on a Leader's task whose uncollected reports expire soon."""
    if collect_before is None or collect_before - now >= COLLECT_WITHIN:
        return None
    return Advice(
        f"task {task}",
        f"has uncollected reports that expire from {moment(collect_before)} on",
        "have them collected before, or raise report_expiry_age with `dapd task set`, first at the "
        "Helper",
    )


def unreadable(task: str) -> Advice:
    """Advise on a task that the daemon can't read."""
    return Advice(f"task {task}", "can't be read", f"`dapd task show {task}` says why")


def job(kind: str, name: str) -> Advice:
    """Advise on an unfinished job that has failed, or has ended the daemon."""
    return Advice(f"{kind} job {name}", "has failed", f"`dapd jobs show {name}` says why")


def given_up(name: str) -> Advice:
    """Advise on a collection that was given up, and whose batch is kept for the same query."""
    return Advice(
        f"collection job {name}",
        "was given up, since the Helper had refused its share for too long; its batch is kept for "
        "the same query until its reports expire",
        f"`dapd jobs show {name}` says what the Helper answered; fix that with its operator, then "
        "have the Collector repeat the query",
    )


def restart(keys: Sequence[str]) -> Advice | None:
    """Advise on reloaded keys of the configuration that only a restart applies."""
    if not keys:
        return None
    return Advice("the daemon", f"still runs with the old {', '.join(keys)}", "restart dapd")


def certificate(expires: datetime | None, now: datetime) -> Advice | None:
    """Advise on a listener's certificate that expires soon, or has expired."""
    if expires is None or expires - now >= CERTIFICATE_LEFT:
        return None
    verb = "expires" if expires > now else "has expired"
    return Advice("the certificate", f"{verb} on {moment(expires)}", RENEW_CERTIFICATE)


def restored(tasks: int) -> Advice | None:
    """Advise if a restore has closed batches of so many tasks, and no operator accepted that."""
    if not tasks:
        return None
    return Advice("", f"a restore has closed batches of {count(tasks, 'task')}", COMPARE_RESTORED)


def backup(state_of: datetime | None, now: datetime) -> Advice | None:
    """Advise on a missing or old backup; ``state_of`` is the time of its contents."""
    if state_of is None:
        return Advice(
            "", "there is no backup yet", "`dapd backup DIR` every night, to another disk"
        )
    if now - state_of <= BACKUP_AGE:
        return None
    remedy = "`dapd backup DIR`, then see why the nightly one is missing"
    return Advice("the last backup", f"is of {moment(state_of)}", remedy)
