"""Reports from Client to Collector through the data plane."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dapd import crypto, reports
from dapd.errors import DecodeError
from dapd.messages.task import Prio3Histogram, Prio3Sum
from dapd.reports import ReportError
from dapd.vdaf import Measurement, VdafConfiguration
from tests.reportpair import (
    BATCH,
    CASES,
    END,
    JOB,
    NOW,
    START,
    Pair,
    bad_public_share,
    flip,
    make_ids,
    parse_response,
    rules,
    some,
)


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize(("config", "measurements", "result"), CASES)
def test_b2_mixed_jobs_give_the_exact_result_of_their_valid_reports(
    config: VdafConfiguration,
    measurements: list[Measurement],
    result: int | list[int],
    by_time: bool,
) -> None:
    """Each invalid report is rejected with the draft's error, on both sides, and spoils nothing."""
    pair = Pair(config, by_time)
    one = measurements[:1]
    good = pair.make(measurements, times=[NOW, NOW - 1, NOW, NOW - 2])
    # At NOW + 1, so that in either mode they stand behind the valid ones in the job.
    invalid = {
        ReportError.VDAF_VERIFY_ERROR: pair.make(one, label="p", time=NOW + 1, tamper="proof"),
        ReportError.INVALID_MESSAGE: pair.make(
            one, label="e", time=NOW + 1, helper=[(10, b""), (9, b"")]
        )
        + pair.make(one, label="h", time=NOW + 1, tamper="helper"),
        ReportError.HPKE_DECRYPT_ERROR: [
            flip(report, -1) for report in pair.make(one, label="c", time=NOW + 1)
        ],
    }
    start = pair.start(good + [report for bad in invalid.values() for report in bad])
    assert reports.count_outcomes(start.outcomes) == {0: 8}
    finish = pair.help(start.verify_inits)
    leader = pair.lead(start, finish.response)
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
    pair = Pair()
    finish = pair.help(pair.start(pair.make([1, 1, 0])).verify_inits)
    expected = 0
    for report_id in reports.split_ids(make_ids(3)):
        expected ^= int.from_bytes(hashlib.sha256(report_id).digest(), "big")
    assert [total.checksum for total in finish.buckets] == [expected.to_bytes(32, "big")]
    assert finish.admitted_ids == make_ids(3)


@pytest.mark.parametrize("config", [config for config, _, _ in CASES])
def test_b1_each_refused_upload_has_the_drafts_error(config: VdafConfiguration) -> None:
    """In the request's order; accepted reports have no entry."""
    pair = Pair(config)
    one = [some(pair)]
    good = pair.make(one)[0]
    cases: list[tuple[bytes, ReportError]] = []

    def case(error: ReportError, **bad: object) -> None:
        label = str(len(cases))
        cases.append((pair.make(one, label=label, **bad)[0], error))  # type: ignore[arg-type]

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
    pair = Pair()
    known, unknown, spoilt, expired = pair.make([1, 1, 0, 1], times=[NOW, NOW, NOW, NOW - 9])
    at = known.index(b"\x01\x00\x20", 26)  # config id 1, enc of 32 bytes
    unknown = unknown[:at] + b"\x63" + unknown[at + 1 :]
    body = known + unknown + flip(spoilt, at + 10) + expired
    group = pair.open(body, bounds=rules(expired_before=NOW - 8))
    assert group.unknown_config_ids == b"\x63"
    (answer,) = group.answers([b"\x00"])
    assert reports.parse_upload_errors(answer.upload_errors) == [
        (unknown[:16], ReportError.OUTDATED_CONFIG),
        (spoilt[:16], ReportError.HPKE_DECRYPT_ERROR),
        (expired[:16], ReportError.REPORT_DROPPED),
    ]


def test_known_extensions_are_taken() -> None:
    """Sorted and each once over both lists of an Aggregator; the other's list is not compared."""
    pair = Pair()
    encoded = pair.make([1], public=[(9, b"data")], leader=[(10, b"")], helper=[(10, b"other")])
    start = pair.start(encoded)
    finish = pair.help(start.verify_inits)
    assert pair.lead(start, finish.response).outcomes == finish.outcomes == b"\x00"


def test_a_malformed_upload_fails_alone() -> None:
    """It is its request's value, and the transaction's word comes back to each request."""
    pair, other = Pair(), Pair(Prio3Sum(3), by_time=False)
    first = pair.make([1, 0], times=[NOW, NOW - 1])
    second = other.make([3], label="other")
    group = reports.open_uploads(
        [
            (pair.task, rules(), b"".join(first)),
            (pair.task, rules(), first[0] + b"cut"),
            (other.task, rules(), second[0]),
            (pair.task, rules(), first[0]),
            (pair.task, rules(), b""),
        ],
        crypto.Keyring([pair.leader]),
        pair.sealer,
    )
    # `other` has a key pair of its own, under the same id.
    assert [(p.task_id, p.bucket, p.count) for p in group.parts] == [
        (pair.task_id, NOW.to_bytes(8, "big"), 2),
        (pair.task_id, (NOW - 1).to_bytes(8, "big"), 1),
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
    pair = Pair(by_time=False)
    encoded = pair.make([1] * 5, times=[NOW, NOW - 5, NOW - 4, NOW - 3, NOW - 2])
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
    pair = Pair(by_time=False)
    ((n, _, _, ids, lengths, rows),) = pair.store(pair.make([1] * 3, times=[NOW, NOW - 5, NOW - 4]))
    assert n == 3
    assert reports.cut_chunk(ids, lengths, rows, bytes(3)) is None
    cut = reports.cut_chunk(ids, lengths, rows, b"\x00\x01\x01")
    assert cut is not None
    assert cut[:4] == (2, NOW - 5, NOW - 4, make_ids(3)[16:])
    start = reports.leader_start(pair.task, rules(), pair.sealer, JOB, [cut[3:]])
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
    pair = Pair()
    encoded = pair.make([1, 1])
    start = pair.start(encoded)
    finish = pair.verify(start.verify_inits, bounds=rules(**changes)).finish([], b"")
    assert finish.outcomes == pair.lead(start, finish.response).outcomes == bytes([error] * 2)
    assert (finish.buckets, finish.admitted_ids) == ([], b"")
    late = pair.start(encoded, bounds=rules(**changes))
    assert (late.verify_inits, late.outcomes) == (b"", bytes([error] * 2))
    assert pair.lead(late, b"").outcomes == bytes([error] * 2)


@pytest.mark.parametrize("config", [config for config, _, _ in CASES])
def test_b2_what_a_leader_spoils_is_a_verify_error(config: VdafConfiguration) -> None:
    """An undecodable public share or message, or a verifier share that does not match."""
    pair = Pair(config)
    init = pair.start(pair.make([some(pair)])).verify_inits
    other = pair.start(pair.make([some(pair)], label="other")).verify_inits
    finish = pair.help(flip(init, -1) + other[:-1] + flip(other[-1:]) + bad_public_share(pair))
    assert finish.outcomes == bytes([ReportError.VDAF_VERIFY_ERROR] * 3)


def test_b2_a_helper_without_the_key_answers_hpke_decrypt_error() -> None:
    """Not hpke_unknown_config_id: the draft has one error for both (L2616)."""
    pair = Pair()
    start = pair.start(pair.make([1]))
    assert reports.HelperJob(start.verify_inits, 0).config_ids == b"\x02"
    pair.helper_ring = crypto.Keyring([pair.leader])
    assert pair.help(start.verify_inits).outcomes == bytes([ReportError.HPKE_DECRYPT_ERROR])


def test_a3_a_job_is_checked_as_a_whole() -> None:
    """No rows, a repeated id, trailing bytes: one DecodeError that says where."""
    pair = Pair()
    inits = pair.start(pair.make([1, 0])).verify_inits
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
    pair = Pair(Prio3Sum(100))
    times = [NOW, NOW, NOW - 1, NOW - 1, NOW - 2, NOW - 2]
    encoded = pair.make([1, 2, 4, 8, 16, 32], times=times)
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
    pair = Pair(Prio3Sum(100))
    inits = pair.start(pair.make([1, 2, 4])).verify_inits
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
    pair = Pair(by_time=False)
    encoded = pair.make([1] * 4) + pair.make([1], label="bad", tamper="proof")
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
    pair = Pair()
    start = pair.start(pair.make([1, 0]))
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
            pair.lead(start, bad)
    # The registry of errors is open; `reserved`, 0 on the wire, must not look like "fine".
    finish = pair.lead(start, one[:16] + b"\x02\xc8" + two[:16] + b"\x02\x00")
    assert finish.outcomes == bytes([200, ReportError.REPORT_DROPPED])
    assert finish.buckets == []


def test_a_continue_that_does_not_verify_rejects_that_report() -> None:
    """Rejection at this point is the report's, not the job's."""
    pair = Pair(Prio3Histogram(4, 2))
    start = pair.start(pair.make([1, 2]))
    response = pair.help(start.verify_inits).response
    finish = pair.lead(start, flip(response, -1))
    assert finish.outcomes == bytes([0, ReportError.VDAF_VERIFY_ERROR])
    assert [total.count for total in finish.buckets] == [1]


def test_i9_what_was_sealed_opens_only_where_it_belongs() -> None:
    """Another job's state, a damaged row, an unknown key: this side's own failure, and said so."""
    pair = Pair()
    chunk = pair.store(pair.make([1]))[0]
    start = reports.leader_start(pair.task, rules(), pair.sealer, JOB, [chunk[3:]])
    with pytest.raises(ValueError, match="tampered"):
        reports.leader_finish(pair.task, pair.sealer, BATCH[:16], None, start.state, b"")
    other = crypto.make_sealer([bytes([1]) * 32])
    with pytest.raises(ValueError, match=f"key {crypto.sealing_key_id(bytes(32)).hex()}"):
        reports.leader_start(pair.task, rules(), other, JOB, [chunk[3:]])
    for at in (10, 40):
        damaged = (chunk[3], chunk[4], flip(chunk[5], at))
        with pytest.raises(ValueError, match=r"tampered|sealing key"):
            reports.leader_start(pair.task, rules(), pair.sealer, JOB, [damaged])
    with pytest.raises(ValueError, match="same number of reports"):
        reports.leader_start(pair.task, rules(), pair.sealer, JOB, [(b"", chunk[4], chunk[5])])


def test_a_leader_selected_job_needs_its_batch() -> None:
    """Without a batch id there is no bucket to add to."""
    pair = Pair(by_time=False)
    start = pair.start(pair.make([1]))
    with pytest.raises(ValueError, match="batch_id is needed"):
        reports.leader_finish(pair.task, pair.sealer, JOB, None, start.state, b"")


MUTATED = Pair(Prio3Histogram(4, 2))
UPLOAD = b"".join(MUTATED.make([1, 2, 3], helper=[(9, b"x")], public=[(10, b"y")]))
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
        finish = MUTATED.lead(STARTED, response)
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
