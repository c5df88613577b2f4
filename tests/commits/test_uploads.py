"""The upload transaction, on a real database with sealed reports."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dapd.commits.uploads import OpenedUploads, store_uploads
from dapd.crypto import Keyring
from dapd.datastore import Datastore, Tx, batches, counters, replay, tasks
from dapd.messages.common import BatchMode
from dapd.protocol.states import RangeState
from dapd.protocol.task import Task, TaskState
from dapd.reports import ReplayIndex, ReportError, open_uploads, parse_upload_errors
from tests.clock import NOW, TIME
from tests.contexts import add_task, open_store
from tests.task_pair import ANY_TIME, TaskPair, make_reports, task_pair

BUCKET = TIME.to_bytes(8, "big")


@dataclass
class Leader:
    datastore: Datastore
    task: Task
    pair: TaskPair

    def opened(self, *bodies: bytes) -> OpenedUploads:
        group = open_uploads(
            [(self.task.parameters, ANY_TIME, body) for body in bodies],
            Keyring([self.pair.leader_key]),
            self.pair.sealer,
        )
        pk = self.task.task_pk
        return OpenedUploads(
            secrets.token_bytes(16), group, [pk] * len(bodies), {self.task.task_id: pk}
        )

    def store(self, opened: OpenedUploads, max_rows: int = 500) -> list[list[int]]:
        """Store a group; return the error codes of each request."""
        answers = self.datastore.run_sync(store_uploads, opened, max_rows, NOW)
        return [[code for _, code in parse_upload_errors(a.upload_errors)] for a in answers]

    def close(self, state: RangeState) -> None:
        """Close the batch of the reports of ``TIME``, for a collection of pk 7."""
        after = (TIME + 1).to_bytes(8, "big")
        self.datastore.run_sync(
            batches.close, self.task.task_pk, BUCKET, after, state=state, collection_pk=7
        )

    def counters(self) -> dict[str, int]:
        return self.datastore.read_sync(counters.of_task, self.task.task_pk)

    def chunk_sizes(self) -> list[int]:
        def look(tx: Tx) -> list[int]:
            return [n for (n,) in tx.all("SELECT n FROM report_chunks ORDER BY chunk_pk")]

        return self.datastore.read_sync(look)


@contextmanager
def open_leader(path: Path, mode: BatchMode) -> Iterator[Leader]:
    pair = task_pair(batch_mode=mode)
    opened = open_store(path / "leader.sqlite")
    yield Leader(opened.datastore, add_task(opened.datastore, pair.leader, pair), pair)
    opened.close()


@pytest.fixture(params=BatchMode)
def leader(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Leader]:
    with open_leader(tmp_path, request.param) as opened:
        yield opened


@pytest.fixture
def by_time(tmp_path: Path) -> Iterator[Leader]:
    """A Leader whose batches are intervals."""
    with open_leader(tmp_path, BatchMode.TIME_INTERVAL) as opened:
        yield opened


def test_b1_reports_are_stored_once_and_known_ids_are_replays(leader: Leader) -> None:
    """B1, I1: a known id is ``report_replayed``, in the same request, another one, or later."""
    reports = make_reports(leader.pair, [1] * 4)
    twice = leader.opened(b"".join([*reports[:2], reports[0]]), b"".join(reports[1:3]))
    assert leader.store(twice) == [[2], [2]]
    assert leader.store(leader.opened(b"".join(reports))) == [[2, 2, 2]]
    assert sum(leader.chunk_sizes()) == 4
    assert leader.counters() == {"upload_accepted": 4, "upload_report_replayed": 5}


def test_d1_a_group_that_was_committed_gives_the_same_answers_again(leader: Leader) -> None:
    """D1: a connection lost in COMMIT is safe to rerun: the claim finds the stored outcome."""
    reports = make_reports(leader.pair, [1] * 3)
    leader.store(leader.opened(reports[0]))
    opened = leader.opened(b"".join(reports), reports[2])
    first = leader.store(opened)
    assert first == [[2], [2]]
    assert leader.store(opened) == first
    assert sum(leader.chunk_sizes()) == 3
    assert leader.counters() == {"upload_accepted": 3, "upload_report_replayed": 2}


def test_d3_a_transaction_that_fails_leaves_nothing_behind_not_even_in_the_index(
    leader: Leader,
) -> None:
    """D3, I2: after a failure at its end the same group is accepted as if it were new."""
    opened = leader.opened(b"".join(make_reports(leader.pair, [1] * 3)))

    def crash(tx: Tx) -> None:
        store_uploads(tx, opened, 500, NOW)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leader.datastore.run_sync(crash)
    assert leader.chunk_sizes() == []
    assert leader.counters() == {}
    assert leader.store(opened) == [[]]
    assert sum(leader.chunk_sizes()) == 3


def test_d2_the_ids_outlive_a_restart(leader: Leader) -> None:
    """D2: the replay index rebuilt from the chunks knows every accepted report."""
    reports = make_reports(leader.pair, [1] * 3)
    leader.store(leader.opened(b"".join(reports)))
    rebuilt = ReplayIndex()

    def rebuild(tx: Tx) -> None:
        tx.replay = rebuilt
        replay.rebuild(tx)

    leader.datastore.read_sync(rebuild)
    assert rebuilt.peek(leader.task.task_pk, b"".join(r[:16] for r in reports)) == b"\1\1\1"


def test_chunks_are_never_larger_than_a_job_may_be(leader: Leader) -> None:
    """A chunk is never larger than a job may be."""
    leader.store(leader.opened(b"".join(make_reports(leader.pair, [1] * 7))), max_rows=3)
    assert sorted(leader.chunk_sizes()) == [1, 3, 3]


@pytest.mark.parametrize("state", [RangeState.CLOSED, RangeState.COLLECTED])
def test_c2_a_closed_or_collected_batch_takes_no_uploads(
    by_time: Leader, state: RangeState
) -> None:
    """C2, B1, I7: they are ``batch_collected``; their ids stay free if the batch reopens."""
    by_time.close(state)
    reports = make_reports(by_time.pair, [1, 1], times=[TIME, TIME + 1])
    assert by_time.store(by_time.opened(b"".join(reports))) == [[ReportError.BATCH_COLLECTED]]
    assert by_time.chunk_sizes() == [1]
    by_time.datastore.run_sync(batches.reopen, 7)
    accepted = [[]] if state is RangeState.CLOSED else [[ReportError.BATCH_COLLECTED]]
    assert by_time.store(by_time.opened(reports[0])) == accepted


@pytest.mark.parametrize("refusing", ["its batch is closed", "the task is drained"])
def test_d7_only_a_report_that_was_stored_is_replayed(by_time: Leader, refusing: str) -> None:
    """A client whose first answer was lost sends its reports again, when it is too late for them.

    It takes ``report_replayed`` for delivered, so a report of which nothing arrived the first time
    gets the reason.
    """
    stored, late = make_reports(by_time.pair, [1, 1])
    assert by_time.store(by_time.opened(stored)) == [[]]
    if refusing == "its batch is closed":
        by_time.close(RangeState.CLOSED)
        reason = ReportError.BATCH_COLLECTED
    else:
        pk = by_time.task.task_pk
        by_time.datastore.run_sync(tasks.set_state, pk, TaskState.DRAINING)
        reason = ReportError.REPORT_DROPPED
    assert by_time.store(by_time.opened(stored + late)) == [[ReportError.REPORT_REPLAYED, reason]]


def test_a_malformed_request_is_its_own_answer_and_spoils_no_neighbour(leader: Leader) -> None:
    """Section "Upload Request": a malformed request is refused as a whole, others are stored."""
    (report,) = make_reports(leader.pair, [1])
    opened = leader.opened(report[:-1], report)
    answers = leader.datastore.run_sync(store_uploads, opened, 500, NOW)
    assert answers[0].error is not None
    assert answers[1].error is None
    assert leader.counters() == {"upload_accepted": 1}
