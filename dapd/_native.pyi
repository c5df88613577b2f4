"""The Rust data plane: it takes whole requests and jobs and returns columns.

Conventions of every call here:

- a *column of ids* is ``n * 16`` bytes; a *column of outcomes* is ``n`` bytes, each a
  ``ReportError`` code of the draft ("Basic Type Definitions"), 0 meaning "fine";
  *lengths* are ``n`` little-endian uint32; times count the task's time precision;
- a *bucket* is the report's time as 8 big-endian bytes, or the 32-byte batch id, or empty
  (a leader-selected report that has no batch yet);
- every call releases the GIL, may be repeated, and never raises for one bad report. A malformed
  message raises ``dapd.errors.DecodeError``; bad parameters raise ``ValueError``.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias, final

HpkeConfigTuple: TypeAlias = tuple[int, int, int, int, bytes]
"""(config id, KEM id, KDF id, AEAD id, public key)."""
Chunk: TypeAlias = tuple[int, int, int, bytes, bytes, bytes]
"""(n, time_min, time_max, ids, lengths, rows); times inclusive."""
Extensions: TypeAlias = Sequence[tuple[int, bytes]]

@final
class Vdaf:
    """A Prio3 instance for two aggregators.

    Raises ``ValueError``, naming the parameter.
    """

    def __new__(
        cls,
        kind: str,
        *,
        length: int | None = None,
        max_measurement: int | None = None,
        chunk_length: int | None = None,
        max_weight: int | None = None,
    ) -> Vdaf: ...
    @property
    def measurement_len(self) -> int:
        """The number of field elements of an encoded measurement."""
    @property
    def aggregate_share_len(self) -> int:
        """The number of bytes of an encoded aggregate share."""

@final
class TaskParameters:
    """A task's parameters for verification, built once and shared.

    ``verify_key`` is 32 bytes. ``bucket_by_time`` is true in the time-interval batch mode.
    """

    def __new__(
        cls,
        vdaf: Vdaf,
        task_id: bytes,
        task_configuration: bytes,
        verify_key: bytes,
        *,
        bucket_by_time: bool,
    ) -> TaskParameters: ...

@final
class ReportRules:
    """The bounds that "Input Share Validation" checks a report against (rules B2, B3).

    A report is ``report_too_early`` if ``time > too_early_after``, ``task_not_started`` if
    ``time < task_start``, ``task_expired`` if ``time >= task_end``, and ``report_dropped`` if
    ``time < expired_before``.
    """

    def __new__(
        cls,
        *,
        too_early_after: int,
        task_start: int,
        task_end: int,
        expired_before: int,
        known_extensions: Sequence[int] = ...,
    ) -> ReportRules: ...

@final
class HpkeKeypair:
    """One HPKE key pair with its config id. The private key is zeroized when dropped.

    Raises ``ValueError`` for an unsupported suite, a malformed key, or keys that don't match.
    """

    def __new__(
        cls,
        config_id: int,
        kem_id: int,
        kdf_id: int,
        aead_id: int,
        public_key: bytes,
        private_key: bytes,
    ) -> HpkeKeypair: ...
    @staticmethod
    def generate(config_id: int, kem_id: int, kdf_id: int, aead_id: int) -> HpkeKeypair: ...
    @property
    def config(self) -> HpkeConfigTuple: ...
    @property
    def private_key(self) -> bytes: ...
    def open(self, info: bytes, aad: bytes, enc: bytes, payload: bytes) -> bytes:
        """RFC 9180 ``OpenBase``. Raises ``ValueError`` if the ciphertext does not open."""

def hpke_seal(
    config: HpkeConfigTuple, info: bytes, aad: bytes, plaintext: bytes
) -> tuple[bytes, bytes]:
    """RFC 9180 ``SealBase``: (enc, payload). Raises ``ValueError`` for a bad suite or key."""

def hpke_supported(kem_id: int, kdf_id: int, aead_id: int) -> bool:
    """Return whether the Rust extension implements this HPKE suite."""

@final
class Keyring:
    """An immutable set of key pairs by config id. Raises ``ValueError`` for a repeated id."""

    def __new__(cls, keypairs: Sequence[HpkeKeypair]) -> Keyring: ...
    @property
    def config_ids(self) -> bytes: ...

@final
class Sealer:
    """AES-256-GCM-SIV at rest: ``0x01 || key_id(8) || nonce(12) || ciphertext``.

    The first key seals, all of them open. ``keys`` are (8-byte id, 32-byte key).
    """

    def __new__(cls, keys: Sequence[tuple[bytes, bytes]]) -> Sealer: ...
    @property
    def key_ids(self) -> list[bytes]:
        """The keys' ids, in the order of ``keys``."""
    def seal(self, aad: bytes, plaintext: bytes) -> bytes: ...
    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """Open a sealed value.

        Raises ``ValueError`` if its key is unknown (naming the id), or if the value or its AAD was
        changed.
        """

def reseal_rows(sealer: Sealer, task_id: bytes, ids: bytes, lengths: bytes, rows: bytes) -> bytes:
    """Seal the rows of a chunk again with the first key; each keeps its length (rule F2).

    Raises ``ValueError`` for a row that does not parse or open.
    """

def row_key_ids(ids: bytes, lengths: bytes, rows: bytes) -> list[tuple[bytes, int]]:
    """Count the rows of a chunk that each sealing key sealed: (key id, rows).

    Raises ``ValueError`` if the columns differ in length or a row does not parse.
    """

@final
class ReplayIndex:
    """The report ids that each task has admitted, as keyed 64-bit hashes (rules D3, F4).

    If two ids of a task have the same hash (probability 2^-64 per pair), the later report is
    rejected as replayed; nothing else goes wrong.
    """

    def __new__(cls) -> ReplayIndex: ...
    def load(self, task_pk: int, ids: bytes) -> None:
        """Add ids that ``rollback`` doesn't remove, when rebuilding the index at start."""
    def admit(self, task_pk: int, ids: bytes) -> bytes:
        """Add ids; return a mask: 1 for each known already, or repeated within ``ids``."""
    def peek(self, task_pk: int, ids: bytes) -> bytes:
        """Return the mask of ``admit`` without adding ids. It may be outdated by the next call."""
    def commit(self) -> None:
        """Make all admits since the last commit or rollback permanent."""
    def rollback(self) -> None:
        """Undo all admits since the last commit or rollback."""
    def forget(self, task_pk: int, ids: bytes) -> None:
        """Remove ids, which ``rollback`` doesn't restore. Call it only after the transaction that
        deletes them has committed.
        """
    def __len__(self) -> int: ...

@final
class UploadPart:
    """The acceptable reports of one task and bucket in an upload group."""

    @property
    def task_id(self) -> bytes: ...
    @property
    def bucket(self) -> bytes: ...
    @property
    def count(self) -> int: ...
    @property
    def ids(self) -> bytes: ...
    def chunks(self, rejected: bytes, max_rows: int) -> list[Chunk]:
        """Return the rows whose outcome in ``rejected`` is 0, in chunks of ``max_rows`` at most."""

@final
class UploadAnswer:
    """The answer to one upload request; ``error`` is (offset, reason) if it is malformed."""

    @property
    def error(self) -> tuple[int, str] | None: ...
    @property
    def upload_errors(self) -> bytes:
        """The encoded ``UploadErrors``; empty if all were accepted."""
    @property
    def outcomes(self) -> dict[int, int]:
        """The number of reports with each outcome; 0 is "accepted"."""

@final
class UploadGroup:
    """The opened reports of some upload requests, grouped into parts."""

    @property
    def parts(self) -> list[UploadPart]: ...
    @property
    def unknown_config_ids(self) -> bytes:
        """The distinct Leader config ids that the keyring lacks."""
    def answers(self, rejected: Sequence[bytes]) -> list[UploadAnswer]:
        """Return one answer per request, given a column of outcomes for each part."""

def open_uploads(
    requests: Sequence[tuple[TaskParameters, ReportRules, bytes]],
    keyring: Keyring,
    sealer: Sealer,
) -> UploadGroup:
    """Parse, check, open and seal the reports of any number of upload requests (rule B1)."""

def parse_upload_errors(body: bytes) -> list[tuple[bytes, int]]:
    """Parse ``UploadErrors`` into (report id, ReportError code) pairs."""

def cut_chunk(ids: bytes, lengths: bytes, rows: bytes, keep: bytes) -> Chunk | None:
    """Return the rows whose byte in ``keep`` is not 0; ``None`` if there are none."""

@final
class BucketTotal:
    """One job's total for one batch bucket. ``share`` is sealed (see ``dapd.crypto``)."""

    @property
    def bucket(self) -> bytes: ...
    @property
    def count(self) -> int: ...
    @property
    def checksum(self) -> bytes: ...
    @property
    def time_min(self) -> int: ...
    @property
    def time_max(self) -> int: ...
    @property
    def share(self) -> bytes: ...

@final
class LeaderStart:
    """The result of ``leader_start``."""

    @property
    def verify_inits(self) -> bytes:
        """The ``VerifyInit`` list; empty if the Leader rejects every report."""
    @property
    def state(self) -> bytes:
        """The sealed verification state of all reports."""
    @property
    def outcomes(self) -> bytes:
        """A byte per report of the chunks, 0 if the report is in ``verify_inits``."""

@final
class LeaderFinish:
    """The result of ``leader_finish``."""

    @property
    def outcomes(self) -> bytes:
        """A byte per report of the job's chunks, 0 if the report counts in the totals."""
    @property
    def buckets(self) -> list[BucketTotal]: ...

def leader_start(
    parameters: TaskParameters,
    rules: ReportRules,
    sealer: Sealer,
    job_id: bytes,
    chunks: Sequence[tuple[bytes, bytes, bytes]],
) -> LeaderStart:
    """Verify a job's reports up to the Leader's first message (section "Leader Initialization").

    ``chunks`` are (ids, lengths, rows). Raises ``ValueError`` if a stored row does not open or
    parse, which means that our own database is damaged.
    """

def leader_finish(
    parameters: TaskParameters,
    sealer: Sealer,
    job_id: bytes,
    batch_id: bytes | None,
    state: bytes,
    response: bytes,
) -> LeaderFinish:
    """Finish a job with the Helper's ``AggregationJobResp`` (section "Leader Initialization").

    ``response`` is empty if ``verify_inits`` was. Raises ``DecodeError`` if the response does not
    parse, has a ``finish`` entry, or missing, extra or reordered ids (rule B5).
    """

@final
class HelperFinish:
    """The result of ``HelperVerified.finish``."""

    @property
    def response(self) -> bytes:
        """The encoded ``AggregationJobResp``."""
    @property
    def admitted_ids(self) -> bytes: ...
    @property
    def admitted_min(self) -> int: ...
    @property
    @property
    def outcomes(self) -> bytes: ...
    @property
    def buckets(self) -> list[BucketTotal]: ...

@final
class HelperVerified:
    """A verified job, to be finished with the replays and collected batches that the transaction
    finds.
    """

    @property
    def seconds_per_report(self) -> float:
        """The time that one thread took per verified report; 0 if none was verified."""
    @property
    def buckets(self) -> list[bytes]:
        """The sorted distinct buckets of the rows that verification did not reject."""
    def candidates(self, collected: Sequence[bytes]) -> bytes:
        """Return the ids, in order, of the rows not rejected whose bucket is not collected."""
    def rework_seconds(self, collected: Sequence[bytes], replayed: bytes) -> float:
        """Estimate the time that ``finish`` takes to subtract rows from the sums.

        It is 0 if ``known`` was right about every row, and infinite if a row counts that ``known``
        left out. ``replayed`` is a mask over ``candidates(collected)``.
        """
    def known(self, collected: Sequence[bytes], replayed: bytes) -> bytes:
        """Return the ``known`` for another ``verify``, if ``rework_seconds`` is too long."""
    def finish(self, collected: Sequence[bytes], replayed: bytes) -> HelperFinish:
        """Decide every row, and build the response and the totals. Pure, without threads (E3).

        Raises ``ValueError`` if ``rework_seconds`` is infinite.
        """

@final
class HelperJob:
    """The ``VerifyInit`` list of an ``AggregationJobInitReq``, which starts at ``offset``.

    Raises ``DecodeError`` for bytes that do not parse, an empty list, or a repeated report id.
    """

    def __new__(cls, body: bytes, offset: int) -> HelperJob: ...
    @property
    def count(self) -> int: ...
    @property
    def time_max(self) -> int:
        """The time of the newest report, up to 2^64 - 1."""
    @property
    def config_ids(self) -> bytes:
        """The distinct config ids of the Helper's input shares."""
    @property
    def ids(self) -> bytes: ...
    def verify(
        self,
        parameters: TaskParameters,
        rules: ReportRules,
        keyring: Keyring,
        sealer: Sealer,
        job_id: bytes,
        batch_id: bytes | None,
        known: bytes,
    ) -> HelperVerified:
        """Open, check and verify every report, and sum the output shares per bucket.

        Sections "Input Share Decryption", "Input Share Validation", "Helper Initialization". A row
        whose outcome in ``known`` is not 0 is left out with that outcome.
        """

def shard(
    vdaf: Vdaf,
    task_id: bytes,
    measurements: Sequence[int] | Sequence[Sequence[int]],
    report_ids: bytes,
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Shard each measurement: (public shares, Leader's input shares, Helper's input shares).

    Raises ``ValueError`` for a measurement that the VDAF can't encode, naming its index.
    """

def seal_reports(
    task_id: bytes,
    task_configuration: bytes,
    leader: HpkeConfigTuple,
    helper: HpkeConfigTuple,
    report_ids: bytes,
    times: Sequence[int],
    public_shares: Sequence[bytes],
    leader_input_shares: Sequence[bytes],
    helper_input_shares: Sequence[bytes],
    *,
    public_extensions: Extensions = ...,
    leader_extensions: Extensions = ...,
    helper_extensions: Extensions = ...,
) -> list[bytes]:
    """Seal shares to the Aggregators: encoded ``Report``s, which joined are an ``UploadRequest``.

    Raises ``ValueError`` for an unusable HPKE configuration or columns of different lengths.
    """

def merge(vdaf: Vdaf, shares: Iterable[bytes]) -> bytes:
    """Add up encoded aggregate shares; without any, return the encoded zero share."""

def unshard(vdaf: Vdaf, leader_share: bytes, helper_share: bytes, count: int) -> int | list[int]:
    """Compute the result of a batch of ``count`` reports from both aggregate shares."""
