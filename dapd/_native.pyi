"""The Rust data plane: whole requests and jobs in, columns out.

Conventions of every call here:

- a *column of ids* is ``n * 16`` bytes; a *column of outcomes* is ``n`` bytes, each a
  ``ReportError`` code of the draft ("Basic Type Definitions"), 0 meaning "fine";
  *lengths* are ``n`` little-endian uint32; times count the task's time precision;
- a *bucket* is the report's time as 8 big-endian bytes, or the 32-byte batch id, or empty
  (a leader-selected report that has no batch yet);
- every call releases the GIL, may be repeated, and never raises for one bad report. What does
  not parse as a whole raises ``dapd.errors.DecodeError``; bad parameters raise ``ValueError``.
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
    """A Prio3 instance for two aggregators. Raises ``ValueError`` that names the parameter."""

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
        """Field elements of an encoded measurement."""
    @property
    def aggregate_share_len(self) -> int:
        """Bytes of an encoded aggregate share."""

@final
class TaskParameters:
    """What verification needs of a task; built once and shared.

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

    ``time > too_early_after`` is too early, ``time < task_start`` not started,
    ``time >= task_end`` expired, ``time < expired_before`` dropped.
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

    Raises ``ValueError`` for an unsupported suite, a malformed key, or halves that don't match.
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
        """RFC 9180 ``OpenBase``. Raises ``ValueError`` if it does not open."""

def hpke_seal(
    config: HpkeConfigTuple, info: bytes, aad: bytes, plaintext: bytes
) -> tuple[bytes, bytes]:
    """RFC 9180 ``SealBase``: (enc, payload). Raises ``ValueError`` for a bad suite or key."""

def hpke_supported(kem_id: int, kdf_id: int, aead_id: int) -> bool: ...

@final
class Keyring:
    """Key pairs, looked up by config id; immutable. Raises ``ValueError`` for a repeated id."""

    def __new__(cls, keypairs: Sequence[HpkeKeypair]) -> Keyring: ...
    @property
    def config_ids(self) -> bytes: ...

@final
class Sealer:
    """AES-256-GCM-SIV at rest: ``0x01 || key_id(8) || nonce(12) || ciphertext``.

    The first key seals, all open. ``keys`` are (8-byte id, 32-byte key).
    """

    def __new__(cls, keys: Sequence[tuple[bytes, bytes]]) -> Sealer: ...
    @property
    def key_ids(self) -> list[bytes]:
        """In the order of ``keys``."""
    def seal(self, aad: bytes, plaintext: bytes) -> bytes: ...
    def open(self, aad: bytes, sealed: bytes) -> bytes:
        """Raises ``ValueError``: unknown key id (named), or the value was tampered with."""

def reseal_rows(sealer: Sealer, task_id: bytes, ids: bytes, lengths: bytes, rows: bytes) -> bytes:
    """The rows of a chunk, each sealed again with the first key; each keeps its length (rule F2).

    Raises ``ValueError`` for a row that does not parse or open.
    """

def row_key_ids(ids: bytes, lengths: bytes, rows: bytes) -> list[tuple[bytes, int]]:
    """How many rows of a chunk each sealing key sealed: (key id, rows). Raises ``ValueError`` for
    columns that do not fit together or rows that do not parse."""

@final
class ReplayIndex:
    """Which report ids of a task are taken: 64-bit keyed hashes under a random secret key (F4).

    Two ids of a task with one hash (chance 2^-64 a pair) cost the later report its place, no more.
    """

    def __new__(cls) -> ReplayIndex: ...
    def load(self, task_pk: int, ids: bytes) -> None:
        """Add ids without a way back (rebuild at start)."""
    def admit(self, task_pk: int, ids: bytes) -> bytes:
        """A mask of the ids known before (1), also by an earlier place here; adds the rest."""
    def peek(self, task_pk: int, ids: bytes) -> bytes:
        """The same mask, adding nothing; a hint without promise."""
    def commit(self) -> None:
        """Make all admits since the last commit or rollback permanent."""
    def rollback(self) -> None:
        """Undo all admits since the last commit or rollback."""
    def forget(self, task_pk: int, ids: bytes) -> None:
        """Free ids without a way back: after the commit that deletes them, never before."""
    def __len__(self) -> int: ...

@final
class UploadPart:
    """The readable reports of one task and bucket in an upload group."""

    @property
    def task_id(self) -> bytes: ...
    @property
    def bucket(self) -> bytes: ...
    @property
    def count(self) -> int: ...
    @property
    def ids(self) -> bytes: ...
    def chunks(self, rejected: bytes, max_rows: int) -> list[Chunk]:
        """The rows whose outcome in ``rejected`` is 0, in chunks of at most ``max_rows``."""

@final
class UploadAnswer:
    """``error`` is (offset, reason) where the request as a whole is malformed."""

    @property
    def error(self) -> tuple[int, str] | None: ...
    @property
    def upload_errors(self) -> bytes:
        """The encoded ``UploadErrors``; empty if all were accepted."""
    @property
    def outcomes(self) -> dict[int, int]:
        """How many reports had each outcome; 0 is "accepted"."""

@final
class UploadGroup:
    @property
    def parts(self) -> list[UploadPart]: ...
    @property
    def unknown_config_ids(self) -> bytes:
        """Distinct Leader config ids that the keyring lacks."""
    def answers(self, rejected: Sequence[bytes]) -> list[UploadAnswer]:
        """One answer a request, given a column of outcomes for each part."""

def open_uploads(
    requests: Sequence[tuple[TaskParameters, ReportRules, bytes]],
    keyring: Keyring,
    sealer: Sealer,
) -> UploadGroup:
    """Parse, check, open and seal the reports of any number of upload requests (rule B1)."""

def parse_upload_errors(body: bytes) -> list[tuple[bytes, int]]:
    """``UploadErrors`` as (report id, ReportError code)."""

def cut_chunk(ids: bytes, lengths: bytes, rows: bytes, keep: bytes) -> Chunk | None:
    """The rows whose byte in ``keep`` is not 0; ``None`` if that is no row."""

@final
class BucketTotal:
    """What one job adds to one batch bucket. ``share`` is sealed (see ``dapd.crypto``)."""

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
    @property
    def verify_inits(self) -> bytes:
        """The ``VerifyInit`` list; empty if the Leader rejects every report."""
    @property
    def state(self) -> bytes:
        """The sealed verification state of every row."""
    @property
    def outcomes(self) -> bytes:
        """A row per report of the chunks, 0 if it is in ``verify_inits``."""

@final
class LeaderFinish:
    @property
    def outcomes(self) -> bytes:
        """A row per report of the job's chunks, 0 if it counts in the totals."""
    @property
    def buckets(self) -> list[BucketTotal]: ...

def leader_start(
    parameters: TaskParameters,
    rules: ReportRules,
    sealer: Sealer,
    job_id: bytes,
    chunks: Sequence[tuple[bytes, bytes, bytes]],
) -> LeaderStart:
    """Section "Leader Initialization": ``chunks`` are (ids, lengths, rows). Raises ``ValueError``
    if a stored row does not open or parse, which is this side's own failure."""

def leader_finish(
    parameters: TaskParameters,
    sealer: Sealer,
    job_id: bytes,
    batch_id: bytes | None,
    state: bytes,
    response: bytes,
) -> LeaderFinish:
    """Section "Leader Initialization", from the ``AggregationJobResp``; with an empty response if
    ``verify_inits`` was empty. Raises ``DecodeError`` if the response does not parse, has a
    ``finish`` entry, or missing, extra or reordered ids (rule B5)."""

@final
class HelperFinish:
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
    """A verified job that waits for the transaction's word on replays and collected batches."""

    @property
    def seconds_per_report(self) -> float:
        """Of one thread, per report that was verified; 0 if none was."""
    @property
    def buckets(self) -> list[bytes]:
        """The sorted distinct buckets of the rows that verification did not reject."""
    def candidates(self, collected: Sequence[bytes]) -> bytes:
        """The ids, in order, of the rows not rejected whose bucket is not in ``collected``."""
    def rework_seconds(self, collected: Sequence[bytes], replayed: bytes) -> float:
        """What ``finish`` would cost: 0 if the verdict agrees with ``known``; infinite if a row
        that ``known`` left out must count. ``replayed`` is a mask over ``candidates(collected)``.
        """
    def known(self, collected: Sequence[bytes], replayed: bytes) -> bytes:
        """The column to hand to ``verify`` again where ``rework_seconds`` is too long."""
    def finish(self, collected: Sequence[bytes], replayed: bytes) -> HelperFinish:
        """Pure, without a pool (rule E3). Raises ``ValueError`` for infinite ``rework_seconds``."""

@final
class HelperJob:
    """The ``VerifyInit`` list of an ``AggregationJobInitReq``, from ``offset`` of ``body`` on.

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
        """Distinct config ids of the Helper's input shares."""
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
        """Sections "Input Share Decryption", "Input Share Validation", "Helper Initialization".

        A row whose outcome in ``known`` is not 0 is left out with that outcome.
        """

def shard(
    vdaf: Vdaf,
    task_id: bytes,
    measurements: Sequence[int] | Sequence[Sequence[int]],
    report_ids: bytes,
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """``Vdaf.shard`` for each measurement: public shares, Leader's and Helper's input shares.

    Raises ``ValueError`` for a measurement that the VDAF can't encode, naming its place.
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
    """Encoded ``Report``s, in order; joined they are an ``UploadRequest``."""

def merge(vdaf: Vdaf, shares: Iterable[bytes]) -> bytes:
    """``Vdaf.merge`` of encoded aggregate shares; of none, the encoded zero share."""

def unshard(
    vdaf: Vdaf, leader_share: bytes, helper_share: bytes, count: int
) -> int | list[int]: ...
