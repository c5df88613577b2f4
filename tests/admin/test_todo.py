"""What `dapd status` asks of an operator: each reason, and its threshold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import pytest

from dapd.admin.clock import ClockView
from dapd.admin.job_view import JobView, Waits
from dapd.admin.peers import PeerView
from dapd.admin.status import DiskView, JobsLine, KeyLine, StatusView, TaskLine, Uploads
from dapd.admin.todo import what_to_do
from dapd.advice.thresholds import BACKUP_AGE, CERTIFICATE_LEFT, COLLECT_WITHIN, PEER_SILENT
from dapd.advice.waiting import Reason

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
HELPER = "https://helper.example/"
SILENT = PEER_SILENT.total_seconds()

KEY = KeyLine(7, "active", NOW, "expired", None)
WELL = StatusView(
    version="0",
    pid=1,
    roles=("leader",),
    uptime_seconds=1.0,
    stopping=False,
    tasks=(),
    quarantined_tasks=0,
    jobs=(),
    uploads=Uploads(0, 1000),
    peers=(),
    keys=(KEY,),
    clock=ClockView(NOW, NOW, None, ()),
    disk=DiskView(1000 << 20, 500 << 20, 1 << 20),
    backup_of=NOW,
    certificate_until=None,
    restart_for=(),
    last_error=None,
)


def to_do(**changed: object) -> tuple[str, ...]:
    """Return the list of a daemon with nothing wrong but what has ``changed``."""
    return what_to_do(msgspec.structs.replace(WELL, **changed), NOW)


def task(state: str = "active", *, collect_before: datetime | None = None) -> TaskLine:
    return TaskLine("6XfTask", "leader", state, "", 0, 5, collect_before)


def peer(
    state: Literal["ok", "failing", "refusing", "paused"], *, down_seconds: float | None = None
) -> PeerView:
    failures = 3 if state == "failing" else 0
    return PeerView(HELPER, state, failures, down_seconds, None, 0, 8, 1)


def waiting(reason: Reason) -> JobsLine:
    """Jobs, the oldest of which waits for this reason."""
    waits = Waits(reason, "why", None)
    oldest = JobView(
        job="a12",
        kind="aggregation",
        role="leader",
        task="6XfTask",
        id="id",
        state="stored",
        reports=5,
        created_at=NOW,
        run_at=NOW,
        attempts=1,
        sends=1,
        crashes=0,
        last_error="x",
        waits=waits,
    )
    return JobsLine("aggregation", "leader", "stored", 2, 10, oldest)


def test_nothing_to_do_in_a_healthy_daemon() -> None:
    """Nor for what passes by itself: stopping, a full queue, jobs that go on, disabled tasks."""
    assert to_do() == ()
    assert (
        to_do(
            stopping=True,
            uploads=Uploads(1000, 1000),
            tasks=(task(), task("disabled"), task("draining"), task("deleted")),
            jobs=(JobsLine("collection", "leader", "waiting", 0, 0, None),),
            peers=(peer("ok"),),
        )
        == ()
    )


def test_what_waits_in_the_configuration_needs_a_restart() -> None:
    """A reload says so once, this list until the restart."""
    (line,) = to_do(restart_for=("admin.listen", "leader.slots"))
    assert line == "the daemon still runs with the old admin.listen, leader.slots: restart dapd"


@pytest.mark.parametrize(("free", "said"), [(500 << 20, False), ((500 << 20) - 1, True)])
def test_e4_a_disk_is_full_once_uploads_are_refused(free: int, *, said: bool) -> None:
    """Exactly there."""
    problem = "the disk has 499 MiB free; below 500 MiB the daemon refuses uploads and new jobs"
    remedy = "make room, or lower [disk] min_free_bytes and `dapd reload`"
    expected = (f"{problem}: {remedy}",)
    assert to_do(disk=DiskView(free, 500 << 20, 0)) == (expected if said else ())


@pytest.mark.parametrize("state", ["pending", "expired", "deleted"])
def test_a_key_must_be_active(state: str) -> None:
    """A key in another state opens reports, but nobody is given it."""
    other = msgspec.structs.replace(KEY, state=state)
    expected = ("no HPKE key is active, so nobody can upload: `dapd key add --active`",)
    assert to_do(keys=()) == expected
    assert to_do(keys=(other,)) == expected
    assert to_do(keys=(other, KEY)) == ()


def test_a_held_clock_is_to_be_confirmed() -> None:
    """With the reason why it is held."""
    (said,) = to_do(clock=ClockView(NOW, NOW, "the clock went ahead by 3 hours", ()))
    assert "held (the clock went ahead by 3 hours)" in said
    assert said.endswith("if it is right already, `dapd clock accept`")


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (COLLECT_WITHIN, False),
        (COLLECT_WITHIN - MOMENT, True),
        (timedelta(), True),
        (-COLLECT_WITHIN, True),
    ],
)
def test_reports_are_to_be_collected_from_a_day_before_they_expire(
    left: timedelta, *, said: bool
) -> None:
    """Also when some of them have expired already."""
    due = NOW + left
    expected = f"task 6XfTask has uncollected reports that expire from {due:%Y-%m-%d %H:%M} UTC on"
    found = to_do(tasks=(task(), task(collect_before=due)))
    assert [line.partition(": ")[0] for line in found] == ([expected] if said else [])
    assert all("report_expiry_age" in line for line in found)


def test_a_task_that_can_not_be_read_has_a_command_that_says_why() -> None:
    """Only the unreadable one is listed."""
    assert to_do(tasks=(task(), task("unreadable"))) == (
        "task 6XfTask can't be read: `dapd task show 6XfTask` says why",
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, False), (SILENT, False), (SILENT + 0.001, True)],
)
def test_a_peer_is_to_be_looked_at_once_it_was_silent_for_long(
    seconds: float | None, *, said: bool
) -> None:
    """A restart of the peer takes less."""
    expected = (
        f"{HELPER} has been unreachable for 5 minutes: `dapd peer probe {HELPER}` says why",
    )
    assert to_do(peers=(peer("failing", down_seconds=seconds),)) == (expected if said else ())


def test_a_peer_that_answers_and_serves_nothing_is_to_be_looked_at() -> None:
    """Such as a proxy whose Aggregator is down."""
    expected = (f"{HELPER} has served nothing for 17 minutes: `dapd peer probe {HELPER}` says why",)
    assert to_do(peers=(peer("refusing", down_seconds=1000.0),)) == expected


def test_a_paused_peer_is_to_be_resumed_and_not_probed() -> None:
    """However long it failed before the pause."""
    expected = (f"{HELPER} is paused by an operator: `dapd peer resume {HELPER}`",)
    assert to_do(peers=(peer("paused"),)) == expected
    failing = peer("paused", down_seconds=10 * SILENT)
    assert to_do(peers=(failing,)) == expected


def test_a_collection_that_was_given_up_is_to_be_queried_again() -> None:
    """Once the Helper no longer refuses it; its job says what the Helper answered."""
    [said] = to_do(given_up=("c3",))
    assert "collection job c3 was given up" in said
    assert "`dapd jobs show c3`" in said
    assert "repeat the query" in said


@pytest.mark.parametrize("reason", list(Reason))
def test_a_job_is_to_be_looked_at_if_nothing_else_of_the_list_explains_it(reason: Reason) -> None:
    """It failed, or it ended the daemon. Other reasons pass, or the list has them already."""
    expected = ("aggregation job a12 has failed: `dapd jobs show a12` says why",)
    told = reason in {Reason.FAILED, Reason.CRASHED}
    assert to_do(jobs=(waiting(reason),)) == (expected if told else ())


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (CERTIFICATE_LEFT, False),
        (CERTIFICATE_LEFT - MOMENT, True),
        (-CERTIFICATE_LEFT, True),
    ],
)
def test_a_certificate_is_to_be_renewed_in_time(left: timedelta, *, said: bool) -> None:
    """An expired one too."""
    until = NOW + left
    verb = "expires" if until > NOW else "has expired"
    expected = (
        f"the certificate {verb} on {until:%Y-%m-%d %H:%M} UTC: renew it, then `dapd reload`",
    )
    assert to_do(certificate_until=until) == (expected if said else ())


def test_a_database_is_to_be_backed_up() -> None:
    """Never yet, and again when the last backup is old."""
    nightly = "`dapd backup DIR` every night, to another disk"
    assert to_do(backup_of=None) == (f"there is no backup yet: {nightly}",)
    assert to_do(backup_of=NOW - BACKUP_AGE) == ()
    made = NOW - BACKUP_AGE - MOMENT
    (said,) = to_do(backup_of=made)
    assert said.startswith(f"the last backup is of {made:%Y-%m-%d %H:%M} UTC: `dapd backup DIR`")


def test_the_most_urgent_comes_first_and_all_is_said() -> None:
    """What is refused now, what is lost soon, what does not go on, and upkeep."""
    said = to_do(
        disk=DiskView(0, 1, 0),
        keys=(),
        clock=ClockView(NOW, NOW, "held", ()),
        tasks=(task("unreadable", collect_before=NOW), task("unreadable")),
        peers=(peer("paused"), peer("failing", down_seconds=1000.0)),
        jobs=(waiting(Reason.FAILED), waiting(Reason.CRASHED)),
        certificate_until=NOW,
        backup_of=None,
    )
    order = [
        "the disk",
        "HPKE key",
        "clock",
        "expire from",
        "can't be read",
        "can't be read",
        "is paused",
        "unreachable",
        "job a12",
        "job a12",
        "certificate",
        "backup",
    ]
    assert len(said) == len(order)
    for line, word in zip(said, order, strict=True):
        assert word in line
