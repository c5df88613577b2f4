"""Reports from Client to Collector through the data plane."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dapd import crypto, reports
from dapd.errors import DecodeError
from dapd.messages.common import BatchMode
from dapd.messages.task import (
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
)
from dapd.reports import ReportError
from dapd.vdaf import Measurement, VdafConfiguration
from tests.task_pair import (
    BATCH,
    JOB,
    SEALING_KEY,
    Spoil,
    TaskPair,
    flip,
    make_ids,
    task_pair,
)

START, END, NOW = 100, 200, 150
CASES: list[tuple[VdafConfiguration, list[Measurement], int | list[int]]] = [
    (Prio3Count(), [1, 0, 1, 1], 3),
    (Prio3Sum(100), [100, 0, 3, 27], 130),
    (Prio3SumVec(3, 7, 2), [[1, 2, 3], [7, 7, 7], [0, 0, 0], [0, 1, 0]], [8, 10, 10]),
    (Prio3Histogram(4, 2), [0, 3, 3, 2], [1, 0, 1, 2]),
    (
        Prio3MultihotCountVec(5, 2, 2),
        [[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        [1, 1, 0, 1, 2],
    ),
]


def rules(**changes: int) -> reports.ReportRules:
    """The bounds at ``NOW``; reports up to a tick ahead are taken, and extension 9 is known."""
    bounds = {"too_early_after": NOW + 1, "task_start": START, "task_end": END, "expired_before": 0}
    return reports.ReportRules(**(bounds | changes), known_extensions=[9, 10])


def make_pair(config: VdafConfiguration | None = None, by_time: bool = True) -> TaskPair:
    """A task whose Aggregators judge reports by ``rules()``."""
    batch_mode = BatchMode.TIME_INTERVAL if by_time else BatchMode.LEADER_SELECTED
    return task_pair(config, batch_mode=batch_mode, rules=rules())


def make(
    pair: TaskPair,
    measurements: Sequence[Measurement],
    *,
    label: str = "",
    time: int = NOW,
    times: Sequence[int] | None = None,
    tamper: str = "",
    **extensions: reports.Extensions,
) -> list[bytes]:
    """Encoded ``Report``s. ``tamper`` names the share that does not decode, or is "proof"."""
    count = len(measurements)
    spoil: Spoil = {tamper: lambda share: share + b"x"} if tamper != "proof" else {"helper": flip}
    return pair.client.seal(
        measurements, make_ids(count, label), times or [time] * count, spoil=spoil, **extensions
    )


def parse_response(response: bytes) -> list[tuple[bytes, int, bytes]]:
    """(report id, type, payload or error) of an ``AggregationJobResp``."""
    found = []
    while response:
        end = 21 + int.from_bytes(response[17:21], "big") if response[16] == 0 else 18
        found.append((response[:16], response[16], response[21 if response[16] == 0 else 17 : end]))
        response = response[end:]
    return found


def bad_public_share(pair: TaskPair) -> bytes:
    """A ``VerifyInit`` whose public share opens but does not decode; no Leader of ours sends it."""
    return unchecked_init(make(pair, [some(pair)], label="public", tamper="public")[0])


def unchecked_init(report: bytes) -> bytes:
    """The ``VerifyInit`` of a Leader that has not looked at the report."""
    share = 26 + int.from_bytes(report[24:26], "big")
    head = share + 4 + int.from_bytes(report[share : share + 4], "big")
    leader_len = 1 + 2 + 32 + 4 + int.from_bytes(report[head + 35 : head + 39], "big")
    return report[:head] + report[head + leader_len :] + opaque32(b"\x00" + opaque32(b"message"))


def opaque32(data: bytes) -> bytes:
    """``opaque<0..2^32-1>``."""
    return len(data).to_bytes(4, "big") + data


def some(pair: TaskPair) -> Measurement:
    return next(ms[0] for config, ms, _ in CASES if config == pair.configuration.vdaf)


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize(("config", "measurements", "result"), CASES)
def test_b2_mixed_jobs_give_the_exact_result_of_their_valid_reports(
    config: VdafConfiguration,
    measurements: list[Measurement],
    result: int | list[int],
    by_time: bool,
) -> None:
    """Each invalid report is rejected with the draft's error, on both sides, and spoils nothing."""
    pair = make_pair(config, by_time)
    one = measurements[:1]
    good = make(pair, measurements, times=[NOW, NOW - 1, NOW, NOW - 2])
    # At NOW + 1, so that in either mode they stand behind the valid ones in the job.
    invalid = {
        ReportError.VDAF_VERIFY_ERROR: make(pair, one, label="p", time=NOW + 1, tamper="proof"),
        ReportError.INVALID_MESSAGE: make(
            pair, one, label="e", time=NOW + 1, helper=[(10, b""), (9, b"")]
        )
        + make(pair, one, label="h", time=NOW + 1, tamper="helper"),
        ReportError.HPKE_DECRYPT_ERROR: [
            flip(report, -1) for report in make(pair, one, label="c", time=NOW + 1)
        ],
    }
    start = pair.start(good + [report for bad in invalid.values() for report in bad])
    assert reports.count_outcomes(start.outcomes) == {0: 8}
    finish = pair.help(start.verify_inits)
    leader = pair.lead(start.state, finish.response)
    assert leader.outcomes == finish.outcomes == bytes([0, 0, 0, 0, 6, 8, 8, 5])
    assert pair.collect(leader, finish) == result
    ours, theirs = (pair.totals(side.buckets) for side in (leader, finish))
    assert [total[:5] for total in ours] == [total[:5] for total in theirs]
    assert [total[0] for total in ours] == (
        [time.to_bytes(8, "big") for time in (NOW - 2, NOW - 1, NOW)] if by_time else [BATCH]
    )
    assert finish.admitted_min == NOW - 2


def test_the_checksum_is_the_xor_of_the_hashed_ids() -> None:
    """Section "Batch Buckets"."""
    pair = make_pair()
    finish = pair.help(pair.start(make(pair, [1, 1, 0])).verify_inits)
    expected = 0
    for report_id in reports.split_ids(make_ids(3)):
        expected ^= int.from_bytes(hashlib.sha256(report_id).digest(), "big")
    assert [total.checksum for total in finish.buckets] == [expected.to_bytes(32, "big")]
    assert finish.admitted_ids == make_ids(3)


@pytest.mark.parametrize("config", [config for config, _, _ in CASES])
def test_b1_each_refused_upload_has_the_drafts_error(config: VdafConfiguration) -> None:
    """In the request's order; accepted reports have no entry."""
    pair = make_pair(config)
    one = [some(pair)]
    good = make(pair, one)[0]
    cases: list[tuple[bytes, ReportError]] = []

    def case(error: ReportError, **bad: object) -> None:
        label = str(len(cases))
        cases.append((make(pair, one, label=label, **bad)[0], error))  # type: ignore[arg-type]

    case(ReportError.REPORT_DROPPED, time=START - 1)
    case(ReportError.REPORT_DROPPED, time=END)
    case(ReportError.REPORT_TOO_EARLY, time=NOW + 2)
    case(ReportError.INVALID_MESSAGE, tamper="public")
    case(ReportError.INVALID_MESSAGE, tamper="leader")
    case(ReportError.INVALID_MESSAGE, public=[(11, b"")])
    case(ReportError.INVALID_MESSAGE, leader=[(11, b"")])
    case(ReportError.INVALID_MESSAGE, public=[(10, b""), (9, b"")])
    case(ReportError.INVALID_MESSAGE, leader=[(9, b""), (9, b"")])
    case(ReportError.INVALID_MESSAGE, public=[(9, b"")], leader=[(9, b"")])
    body = good + b"".join(report for report, _ in cases)
    group = pair.open(body)
    assert [part.ids for part in group.parts] == [good[:16]]
    (answer,) = group.answers([b"\x00"])
    assert answer.error is None
    assert reports.parse_upload_errors(answer.upload_errors) == [
        (report[:16], error) for report, error in cases
    ]
    assert answer.outcomes == {0: 1, 3: 2, 8: 7, 9: 1}


def test_b1_hpke_failures_and_the_watermark() -> None:
    """An unknown config id is outdated_config and told apart, so that the keyring can be read
    anew; a ciphertext that does not open is hpke_decrypt_error; below the mark, report_dropped.
    """
    pair = make_pair()
    known, unknown, spoilt, expired = make(pair, [1, 1, 0, 1], times=[NOW, NOW, NOW, NOW - 9])
    at = known.index(b"\x01\x00\x20", 26)  # config id 1, enc of 32 bytes
    unknown = unknown[:at] + b"\x63" + unknown[at + 1 :]
    body = known + unknown + flip(spoilt, at + 10) + expired
    group = pair.open(body, rules=rules(expired_before=NOW - 8))
    assert group.unknown_config_ids == b"\x63"
    (answer,) = group.answers([b"\x00"])
    assert reports.parse_upload_errors(answer.upload_errors) == [
        (unknown[:16], ReportError.OUTDATED_CONFIG),
        (spoilt[:16], ReportError.HPKE_DECRYPT_ERROR),
        (expired[:16], ReportError.REPORT_DROPPED),
    ]


def test_known_extensions_are_taken() -> None:
    """Sorted and each once over both lists of an Aggregator; the other's list is not compared."""
    pair = make_pair()
    encoded = make(pair, [1], public=[(9, b"data")], leader=[(10, b"")], helper=[(10, b"other")])
    start = pair.start(encoded)
    finish = pair.help(start.verify_inits)
    assert pair.lead(start.state, finish.response).outcomes == finish.outcomes == b"\x00"


def test_a_malformed_upload_fails_alone() -> None:
    """It is its request's value, and the transaction's word comes back to each request."""
    pair, other = make_pair(), make_pair(Prio3Sum(3), by_time=False)
    first = make(pair, [1, 0], times=[NOW, NOW - 1])
    second = make(other, [3], label="other")
    group = reports.open_uploads(
        [
            (pair.leader.parameters, rules(), b"".join(first)),
            (pair.leader.parameters, rules(), first[0] + b"cut"),
            (other.leader.parameters, rules(), second[0]),
            (pair.leader.parameters, rules(), first[0]),
            (pair.leader.parameters, rules(), b""),
        ],
        crypto.Keyring([pair.leader_key]),
        pair.sealer,
    )
    # `other` has a key pair of its own, under the same id.
    assert [(p.task_id, p.bucket, p.count) for p in group.parts] == [
        (pair.leader.task_id, NOW.to_bytes(8, "big"), 2),
        (pair.leader.task_id, (NOW - 1).to_bytes(8, "big"), 1),
    ]
    answers = group.answers([bytes([0, ReportError.REPORT_REPLAYED]), b"\x00"])
    assert [answer.error for answer in answers] == [
        None,
        (len(first[0]), "report_id needs 16 bytes, 3 are left"),
        None,
        None,
        None,
    ]
    assert [answer.outcomes for answer in answers] == [{0: 2}, {}, {5: 1}, {2: 1}, {}]
    assert answers[3].upload_errors == first[0][:16] + b"\x02"
    with pytest.raises(ValueError, match="an outcome for each row"):
        group.answers([b"\x00\x00"])


def test_chunks_hold_at_most_so_many_rows_and_none_that_was_refused() -> None:
    """Each with its own count and span; E3: the same again when called again."""
    pair = make_pair(by_time=False)
    encoded = make(pair, [1] * 5, times=[NOW, NOW - 5, NOW - 4, NOW - 3, NOW - 2])
    (part,) = pair.open(b"".join(encoded)).parts
    assert (part.bucket, part.count, part.ids) == (b"", 5, make_ids(5))
    chunks = part.chunks(bytes([0, 2, 0, 0, 0]), 3)
    assert chunks == part.chunks(bytes([0, 2, 0, 0, 0]), 3)
    assert [chunk[:3] for chunk in chunks] == [(3, NOW - 4, NOW), (1, NOW - 2, NOW - 2)]
    ids = reports.split_ids(make_ids(5))
    assert [chunk[3] for chunk in chunks] == [ids[0] + ids[2] + ids[3], ids[4]]
    assert part.chunks(bytes([2] * 5), 3) == []
    with pytest.raises(ValueError, match="max_rows"):
        part.chunks(bytes(5), 0)


def test_d5_a_chunk_is_cut_by_slicing() -> None:
    """The slices are chunks as good as the whole; nothing kept is no chunk."""
    pair = make_pair(by_time=False)
    ((n, _, _, ids, lengths, rows),) = pair.chunks(
        make(pair, [1] * 3, times=[NOW, NOW - 5, NOW - 4])
    )
    assert n == 3
    assert reports.cut_chunk(ids, lengths, rows, bytes(3)) is None
    cut = reports.cut_chunk(ids, lengths, rows, b"\x00\x01\x01")
    assert cut is not None
    assert cut[:4] == (2, NOW - 5, NOW - 4, make_ids(3)[16:])
    start = reports.leader_start(pair.leader.parameters, rules(), pair.sealer, JOB, [cut[3:]])
    assert start.outcomes == b"\x00\x00"
    with pytest.raises(ValueError, match="keep must have"):
        reports.cut_chunk(ids, lengths, rows, b"\x01")
    with pytest.raises(ValueError, match="damaged"):
        reports.cut_chunk(ids, lengths, rows[:-1], b"\x01\x01\x01")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"too_early_after": NOW - 1}, ReportError.REPORT_TOO_EARLY),
        ({"task_start": NOW + 1}, ReportError.TASK_NOT_STARTED),
        ({"task_end": NOW}, ReportError.TASK_EXPIRED),
        ({"expired_before": NOW + 1}, ReportError.REPORT_DROPPED),
    ],
)
def test_b2_times_are_checked_by_both_sides(changes: dict[str, int], error: ReportError) -> None:
    """Each with its own bounds; B6: a job whose reports the Leader rejects all has no request."""
    pair = make_pair()
    encoded = make(pair, [1, 1])
    start = pair.start(encoded)
    finish = pair.verify(start.verify_inits, rules=rules(**changes)).finish([], b"")
    assert finish.outcomes == pair.lead(start.state, finish.response).outcomes == bytes([error] * 2)
    assert (finish.buckets, finish.admitted_ids) == ([], b"")
    late = pair.start(encoded, rules=rules(**changes))
    assert (late.verify_inits, late.outcomes) == (b"", bytes([error] * 2))
    assert pair.lead(late.state, b"").outcomes == bytes([error] * 2)


@pytest.mark.parametrize("config", [config for config, _, _ in CASES])
def test_b2_what_a_leader_spoils_is_a_verify_error(config: VdafConfiguration) -> None:
    """An undecodable public share or message, or a verifier share that does not match."""
    pair = make_pair(config)
    init = pair.start(make(pair, [some(pair)])).verify_inits
    other = pair.start(make(pair, [some(pair)], label="other")).verify_inits
    finish = pair.help(flip(init, -1) + other[:-1] + flip(other[-1:]) + bad_public_share(pair))
    assert finish.outcomes == bytes([ReportError.VDAF_VERIFY_ERROR] * 3)


@pytest.mark.parametrize(
    ("public", "helper"),
    [
        ([11], []),
        ([], [11]),
        ([9], [9]),
        ([], [9, 9]),
        ([10, 9], []),
        ([], [10, 9]),
    ],
)
def test_b3_a_helper_rejects_each_report_with_bad_extensions(
    public: list[int], helper: list[int]
) -> None:
    """Unknown, repeated in one list or over both, out of order; no Leader need have noticed."""
    pair = make_pair()
    taken = pair.start(make(pair, [1])).verify_inits
    (report,) = pair.client.seal(
        [1],
        make_ids(1, "bad"),
        [NOW],
        public=[(kind, b"") for kind in public],
        helper=[(kind, b"") for kind in helper],
    )
    finish = pair.help(taken + unchecked_init(report))
    assert finish.outcomes == bytes([0, ReportError.INVALID_MESSAGE])


def test_b2_a_helper_without_the_key_answers_hpke_decrypt_error() -> None:
    """Not hpke_unknown_config_id: the draft has one error for both (L2616)."""
    pair = make_pair()
    start = pair.start(make(pair, [1]))
    assert reports.HelperJob(start.verify_inits, 0).config_ids == b"\x02"
    without = replace(pair, helper_key=pair.leader_key)
    assert without.help(start.verify_inits).outcomes == bytes([ReportError.HPKE_DECRYPT_ERROR])


def test_a3_a_job_is_checked_as_a_whole() -> None:
    """No rows, a repeated id, trailing bytes: one DecodeError that says where."""
    pair = make_pair()
    inits = pair.start(make(pair, [1, 0])).verify_inits
    job = reports.HelperJob(b"head" + inits, 4)
    assert (job.count, job.ids) == (2, make_ids(2))
    for body, offset, reason in [
        (b"", 4, "no verify_inits"),
        (inits + inits, 4 + len(inits), "repeated report id"),
        (inits + b"\x00", 4 + len(inits), "report_id needs 16 bytes"),
    ]:
        with pytest.raises(DecodeError, match=reason) as caught:
            reports.HelperJob(b"head" + body, 4)
        assert caught.value.offset == offset


def test_e3_rows_that_the_transaction_rejects_leave_no_trace() -> None:
    """``finish`` with rejected rows equals a job without them, and may be called again."""
    pair = make_pair(Prio3Sum(100))
    times = [NOW, NOW, NOW - 1, NOW - 1, NOW - 2, NOW - 2]
    encoded = make(pair, [1, 2, 4, 8, 16, 32], times=times)
    inits = pair.start(encoded).verify_inits
    verified = pair.verify(inits)
    assert verified.buckets == [time.to_bytes(8, "big") for time in (NOW - 2, NOW - 1, NOW)]
    collected = [(NOW - 2).to_bytes(8, "big"), (NOW + 7).to_bytes(8, "big")]
    assert verified.candidates(collected) == make_ids(4)
    replayed = b"\x00\x01\x00\x00"
    # Only one output share must come out: the collected bucket has no total at all.
    assert verified.rework_seconds(collected, replayed) == verified.seconds_per_report > 0
    first, again = (verified.finish(collected, replayed) for _ in range(2))
    assert first.outcomes == verified.known(collected, replayed) == bytes([0, 2, 0, 0, 1, 1])
    assert (first.response, pair.totals(first.buckets)) == (
        again.response,
        pair.totals(again.buckets),
    )
    kept = pair.help(pair.start([encoded[0], encoded[2], encoded[3]]).verify_inits)
    assert pair.totals(first.buckets) == pair.totals(kept.buckets)
    assert first.admitted_ids == kept.admitted_ids
    assert [kind for _, kind, _ in parse_response(first.response)] == [0, 2, 0, 0, 2, 2]
    assert verified.rework_seconds([], bytes(6)) == 0
    with pytest.raises(ValueError, match="a byte for each candidate"):
        verified.finish(collected, bytes(3))


def test_e3_known_rows_are_left_out_and_must_be_confirmed() -> None:
    """What ``peek`` said costs nothing where the transaction agrees; where it does not, the job is
    verified again with the new column.
    """
    pair = make_pair(Prio3Sum(100))
    inits = pair.start(make(pair, [1, 2, 4])).verify_inits
    verified = pair.verify(inits, known=b"\x00\x02\x00")
    assert verified.candidates([]) == make_ids(3)
    assert verified.rework_seconds([], b"\x00\x01\x00") == 0
    agreed = verified.finish([], b"\x00\x01\x00")
    assert agreed.outcomes == b"\x00\x02\x00"
    assert verified.rework_seconds([], bytes(3)) == float("inf")
    with pytest.raises(ValueError, match="verify again"):
        verified.finish([], bytes(3))
    anew = pair.verify(inits, known=verified.known([], b"\x01\x00\x00"))
    assert anew.finish([], b"\x01\x00\x00").outcomes == b"\x02\x00\x00"
    assert pair.verify(inits, known=bytes([3, 0, 0])).candidates([]) == make_ids(3)[16:]


def test_i6_every_report_of_a_job_is_answered_in_order() -> None:
    """Whoever rejects it: rules, verification, or transaction."""
    pair = make_pair(by_time=False)
    encoded = make(pair, [1] * 4) + make(pair, [1], label="bad", tamper="proof")
    verified = pair.verify(pair.start(encoded).verify_inits)
    ids = reports.split_ids(make_ids(4))
    answers = parse_response(verified.finish([], b"\x00\x01\x00\x01").response)
    assert [answer[0] for answer in answers] == [*ids, make_ids(1, "bad")]
    assert [answer[1] for answer in answers] == [0, 2, 0, 2, 2]
    assert b"".join(answer[2] for answer in answers if answer[1]) == b"\x02\x02\x06"
    closed = verified.finish([BATCH], b"")
    assert (closed.outcomes, closed.buckets) == (bytes([1, 1, 1, 1, 6]), [])


def test_b5_the_leader_takes_no_other_answer_than_the_drafts() -> None:
    """Finish, missing, extra, reordered and unknown types fail the job as a whole."""
    pair = make_pair()
    start = pair.start(make(pair, [1, 0]))
    response = pair.help(start.verify_inits).response
    one, two = response[:26], response[26:]
    for bad, reason in [
        (one + two[:16] + b"\x01", "finish instead of continue"),
        (one, "a VerifyResp is missing"),
        (b"", "a VerifyResp is missing"),
        (response + one, "a VerifyResp too many"),
        (two + one, "report id differs"),
        (one + two[:16] + b"\x03", "unknown verify_resp_type 3"),
        (response[:-1], "VerifyResp payload needs 5 bytes"),
    ]:
        with pytest.raises(DecodeError, match=reason):
            pair.lead(start.state, bad)
    # The registry of errors is open; `reserved`, 0 on the wire, must not look like "fine".
    finish = pair.lead(start.state, one[:16] + b"\x02\xc8" + two[:16] + b"\x02\x00")
    assert finish.outcomes == bytes([200, ReportError.REPORT_DROPPED])
    assert finish.buckets == []


def test_a_continue_that_does_not_verify_rejects_that_report() -> None:
    """Rejection at this point is the report's, not the job's."""
    pair = make_pair(Prio3Histogram(4, 2))
    start = pair.start(make(pair, [1, 2]))
    response = pair.help(start.verify_inits).response
    finish = pair.lead(start.state, flip(response, -1))
    assert finish.outcomes == bytes([0, ReportError.VDAF_VERIFY_ERROR])
    assert [total.count for total in finish.buckets] == [1]


def test_i9_what_was_sealed_opens_only_where_it_belongs() -> None:
    """Another job's state, a damaged row, an unknown key: this side's own failure, and said so."""
    pair = make_pair()
    chunk = pair.chunks(make(pair, [1]))[0]
    start = reports.leader_start(pair.leader.parameters, rules(), pair.sealer, JOB, [chunk[3:]])
    with pytest.raises(ValueError, match="tampered"):
        reports.leader_finish(
            pair.leader.parameters, pair.sealer, BATCH[:16], None, start.state, b""
        )
    other = crypto.make_sealer([bytes([1]) * 32])
    with pytest.raises(ValueError, match=f"key {crypto.sealing_key_id(SEALING_KEY).hex()}"):
        reports.leader_start(pair.leader.parameters, rules(), other, JOB, [chunk[3:]])
    for at in (10, 40):
        damaged = (chunk[3], chunk[4], flip(chunk[5], at))
        with pytest.raises(ValueError, match=r"tampered|sealing key"):
            reports.leader_start(pair.leader.parameters, rules(), pair.sealer, JOB, [damaged])
    with pytest.raises(ValueError, match="same number of reports"):
        reports.leader_start(
            pair.leader.parameters, rules(), pair.sealer, JOB, [(b"", chunk[4], chunk[5])]
        )


def test_a_leader_selected_job_needs_its_batch() -> None:
    """Without a batch id there is no bucket to add to."""
    pair = make_pair(by_time=False)
    start = pair.start(make(pair, [1]))
    with pytest.raises(ValueError, match="batch_id is needed"):
        reports.leader_finish(pair.leader.parameters, pair.sealer, JOB, None, start.state, b"")


MUTATED = make_pair(Prio3Histogram(4, 2))
UPLOAD = b"".join(make(MUTATED, [1, 2, 3], helper=[(9, b"x")], public=[(10, b"y")]))
STARTED = MUTATED.start([UPLOAD[: len(UPLOAD) // 3]])
INITS = STARTED.verify_inits
RESPONSE = MUTATED.help(INITS).response


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    """``original`` with some bytes changed, a piece cut out, or bytes put in."""
    data = bytearray(original)
    for at, value in draw(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3)):
        data[at % len(data)] = value
    start, length = draw(st.tuples(st.integers(0, len(data)), st.integers(0, 40)))
    data[start : start + length] = (
        draw(st.binary(max_size=8)) if length % 2 else data[start : start + length]
    )
    return bytes(data)


@settings(deadline=None)
@given(mutations(UPLOAD) | st.binary(max_size=200))
@example(UPLOAD)
def test_a_mutated_upload_is_answered_whatever_it_is(body: bytes) -> None:
    """No exception: an error with an offset inside the body, or an outcome for each report."""
    group = MUTATED.open(body)
    (answer,) = group.answers([bytes(part.count) for part in group.parts])
    if answer.error is not None:
        assert 0 <= answer.error[0] <= len(body)
        assert answer.outcomes == {}
    else:
        assert bool(answer.outcomes) == bool(body)
        assert body != UPLOAD or answer.outcomes == {0: 3}


@settings(deadline=None)
@given(mutations(INITS) | st.binary(max_size=200))
@example(INITS)
def test_a_mutated_job_is_a_decode_error_or_a_rejection(body: bytes) -> None:
    """Never another exception, and never a report that counts, unless it is the original."""
    try:
        finish = MUTATED.help(body)
    except DecodeError:
        assert body != INITS
    else:
        assert (0 in finish.outcomes) == (INITS in body)


@settings(deadline=None)
@given(mutations(RESPONSE) | st.binary(max_size=100))
@example(RESPONSE)
def test_a_mutated_response_is_a_decode_error_or_a_rejection(response: bytes) -> None:
    """The same on the Leader's side."""
    try:
        finish = MUTATED.lead(STARTED.state, response)
    except DecodeError:
        assert response != RESPONSE
    else:
        assert (finish.outcomes == b"\x00") == (response == RESPONSE)


def test_columns_are_looked_at_without_a_loop() -> None:
    """The helpers of the facade."""
    outcomes = bytes([0, 9, 0, 200, 9])
    assert reports.count_outcomes(outcomes) == {0: 2, 9: 2, 200: 1}
    assert reports.mask_of(outcomes, ReportError.REPORT_TOO_EARLY) == b"\x00\x01\x00\x00\x01"
    ids = make_ids(5)
    assert reports.ids_where(ids, outcomes, 9) == ids[16:32] + ids[64:]
    assert reports.outcome_name(9) == "report_too_early"
    assert reports.outcome_name(200) == "report_error_200"
