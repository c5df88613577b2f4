"""What `dapd status` asks of a person: each reason, and from where on it is one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import pytest

from dapd.admin.clock import ClockView
from dapd.admin.job_view import JobView, Waits
from dapd.admin.peers import PeerView
from dapd.admin.status import DiskView, JobsLine, KeyLine, StatusView, TaskLine, Uploads
from dapd.admin.todo import (
    BACKUP_AGE,
    CERTIFICATE_LEFT,
    COLLECT_WITHIN,
    PEER_SILENT_SECONDS,
    what_to_do,
)
from dapd.protocol.waiting import Reason

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
HELPER = "https://helper.example/"

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
    """Of a daemon that is well but for what has ``changed``."""
    return what_to_do(msgspec.structs.replace(WELL, **changed), NOW)


def task(state: str = "active", *, collect_before: datetime | None = None) -> TaskLine:
    return TaskLine("6XfTask", "leader", state, "", 0, 5, collect_before)


def peer(
    state: Literal["ok", "failing", "refusing", "paused"], *, down_seconds: float | None = None
) -> PeerView:
    failures = 3 if state == "failing" else 0
    return PeerView(HELPER, state, failures, down_seconds, None, 0, 8, 1)


def waiting(reason: Reason) -> JobsLine:
    """Jobs of which the oldest waits for this reason."""
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


def test_nothing_is_to_do_in_a_daemon_that_is_well() -> None:
    """Not for what passes by itself either: errors that are over, jobs that go on, a full queue."""
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
    """A reload says so once; this does until it is done."""
    (line,) = to_do(restart_for=("admin.listen", "leader.slots"))
    assert "configured before as admin.listen, leader.slots" in line
    assert line.endswith(": restart dapd"), "as doctor tells what is wrong from what helps"


@pytest.mark.parametrize(("free", "said"), [(500 << 20, False), ((500 << 20) - 1, True)])
def test_a_full_disk_is_one_from_where_uploads_are_refused(free: int, *, said: bool) -> None:
    """Exactly there."""
    expected = ("499 MiB are free on the disk, and uploads are refused: make room",)
    assert to_do(disk=DiskView(free, 500 << 20, 0)) == (expected if said else ())


@pytest.mark.parametrize("state", ["pending", "expired", "deleted"])
def test_a_key_must_be_active(state: str) -> None:
    """One of another state won't do."""
    other = msgspec.structs.replace(KEY, state=state)
    expected = ("no HPKE key is active, and nobody can upload: dapd key add --active",)
    assert to_do(keys=()) == expected
    assert to_do(keys=(other,)) == expected
    assert to_do(keys=(other, KEY)) == ()


def test_a_held_clock_is_to_be_confirmed() -> None:
    """With the reason why it is held."""
    (said,) = to_do(clock=ClockView(NOW, NOW, "the clock went ahead by 3 hours", ()))
    assert "held (the clock went ahead by 3 hours)" in said
    assert said.endswith("then dapd clock accept")


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
    expected = f"task 6XfTask has uncollected reports that expire from {due:%Y-%m-%d %H:%M} UTC"
    found = to_do(tasks=(task(), task(collect_before=due)))
    assert found == ((f"{expected}: have it collected",) if said else ())


def test_a_task_that_can_not_be_read_has_a_command_that_says_why() -> None:
    """That one only."""
    assert to_do(tasks=(task(), task("unreadable"))) == (
        "task 6XfTask can't be read: dapd task show 6XfTask says what helps",
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, False), (PEER_SILENT_SECONDS, False), (PEER_SILENT_SECONDS + 0.001, True)],
)
def test_a_peer_is_to_be_looked_at_once_it_was_silent_for_long(
    seconds: float | None, *, said: bool
) -> None:
    """A restart over there is shorter."""
    expected = (f"{HELPER} can't be reached for 5 minutes: dapd peer probe {HELPER} says why",)
    assert to_do(peers=(peer("failing", down_seconds=seconds),)) == (expected if said else ())


def test_a_peer_that_answers_and_serves_nothing_is_to_be_looked_at() -> None:
    """Such as a proxy over there whose Aggregator is down."""
    expected = (f"{HELPER} serves nothing for 17 minutes: dapd peer probe {HELPER} says why",)
    assert to_do(peers=(peer("refusing", down_seconds=1000.0),)) == expected


def test_a_paused_peer_is_to_be_resumed_and_not_probed() -> None:
    """However long it failed before the pause."""
    expected = (f"{HELPER} is paused: dapd peer resume {HELPER}",)
    assert to_do(peers=(peer("paused"),)) == expected
    failing = peer("paused", down_seconds=10 * PEER_SILENT_SECONDS)
    assert to_do(peers=(failing,)) == expected


@pytest.mark.parametrize("reason", list(Reason))
def test_a_job_is_to_be_looked_at_if_nothing_else_of_the_list_explains_it(reason: Reason) -> None:
    """It failed, or it ended the daemon; whatever else it waits for comes by itself or stands
    elsewhere.
    """
    expected = ("aggregation job a12 waits: dapd jobs show a12 says why",)
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
    """One that has expired, too."""
    until = NOW + left
    expected = (
        f"the certificate expires on {until:%Y-%m-%d %H:%M} UTC: renew it, then dapd reload",
    )
    assert to_do(certificate_until=until) == (expected if said else ())


def test_a_database_is_to_be_backed_up() -> None:
    """Never yet, and again when the last backup is old."""
    assert to_do(backup_of=None) == ("there is no backup yet: dapd backup DIR",)
    assert to_do(backup_of=NOW - BACKUP_AGE) == ()
    made = NOW - BACKUP_AGE - MOMENT
    expected = (f"the last backup is of {made:%Y-%m-%d %H:%M} UTC: dapd backup DIR",)
    assert to_do(backup_of=made) == expected


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
        "on the disk",
        "HPKE key",
        "clock",
        "expire from",
        "can't be read",
        "can't be read",
        "is paused",
        "can't be reached",
        "job a12",
        "job a12",
        "certificate",
        "backup",
    ]
    assert len(said) == len(order)
    for line, word in zip(said, order, strict=True):
        assert word in line
