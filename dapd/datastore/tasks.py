"""The table of tasks: verify keys and outbound tokens are sealed, inbound tokens hashed (I9).

``dapd.datastore.watermarks`` reads and raises the tasks' watermarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dapd.crypto import TOKEN_HASH_SIZE, Sealer, token_aad, verify_key_aad
from dapd.datastore import outstanding
from dapd.datastore.sqlite import Row, Tx
from dapd.errors import UsageError
from dapd.messages.common import BatchMode, HpkeConfig, Role, b64url_encode
from dapd.messages.task import TaskConfiguration
from dapd.protocol.task import Task, TaskSettings, TaskState

DAP_VERSION = "dap-18"

_COLUMNS = """task_pk, task_id, role, configuration, verify_key, verification_key_id,
collector_hpke_config, aggregator_token, inbound_token_hashes, helper_mode, batch_target_size,
report_expiry_age, expired_before, quarantined_before, peer_accepted, state, dap_version"""
_Q_ALL = f"SELECT {_COLUMNS} FROM tasks ORDER BY task_pk"  # noqa: S608 - constants alone
_Q_ONE = f"SELECT {_COLUMNS} FROM tasks WHERE task_id = :task_id"  # noqa: S608 - constants alone
_Q_INSERT = """
INSERT INTO tasks (task_id, role, dap_version, configuration, peer, verify_key,
  verification_key_id, collector_hpke_config, aggregator_token, inbound_token_hashes, helper_mode,
  batch_target_size, report_expiry_age)
VALUES (:task_id, :role, :dap_version, :configuration, :peer, :verify_key, :verification_key_id,
  :collector_hpke_config, :aggregator_token, :inbound_token_hashes, :helper_mode,
  :batch_target_size, :report_expiry_age)
RETURNING task_pk"""
_Q_SETTINGS = """
UPDATE tasks SET helper_mode = :helper_mode, batch_target_size = :batch_target_size,
  report_expiry_age = :report_expiry_age WHERE task_pk = :task_pk"""
_Q_STATE = """
UPDATE tasks SET state = :state
WHERE task_pk = :task_pk AND state IN ('active', 'draining', 'disabled') AND state <> :state"""
_Q_DELETE = """
UPDATE tasks SET state = 'deleted', expired_before = max(expired_before, :mark)
WHERE task_pk = :task_pk AND state IN ('active', 'draining', 'disabled')"""
_Q_REVIVE = """
UPDATE tasks SET state = 'active', verify_key = :verify_key,
  verification_key_id = :verification_key_id, collector_hpke_config = :collector_hpke_config,
  aggregator_token = :aggregator_token, inbound_token_hashes = :inbound_token_hashes,
  helper_mode = :helper_mode, batch_target_size = :batch_target_size,
  report_expiry_age = :report_expiry_age, peer_accepted = 0
WHERE task_pk = :task_pk AND state = 'purged'"""
_Q_SECRETS = """
UPDATE tasks SET verify_key = :verify_key, aggregator_token = :aggregator_token,
  inbound_token_hashes = :inbound_token_hashes WHERE task_pk = :task_pk"""
_Q_INBOUND = """
UPDATE tasks SET inbound_token_hashes = :hashes WHERE task_pk = :task_pk"""
_Q_OUTBOUND = "UPDATE tasks SET aggregator_token = :token WHERE task_pk = :task_pk"
_Q_TAKES_UPLOADS = """
SELECT state NOT IN ('draining', 'deleted', 'purged') FROM tasks WHERE task_pk = :task_pk"""
_Q_OUTLINES = """
SELECT task_pk, task_id, role, configuration, quarantined_before FROM tasks
WHERE state <> 'purged' ORDER BY task_pk"""
_Q_HAS_ROWS = """
SELECT EXISTS (SELECT 1 FROM report_chunks WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM aggregation_jobs WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM batch_shares WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM collected WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM outstanding_batches WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM suspect_batches WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM collection_jobs WHERE task_pk = :task_pk)
  OR EXISTS (SELECT 1 FROM aggregate_share_jobs WHERE task_pk = :task_pk)"""
_Q_PURGE = """
UPDATE tasks SET state = 'purged', verify_key = x'', aggregator_token = NULL,
  inbound_token_hashes = x''
WHERE task_pk = :task_pk AND state = 'deleted'"""
_Q_PEER_ACCEPTED = (
    "UPDATE tasks SET peer_accepted = 1 WHERE task_pk = :task_pk AND peer_accepted = 0"
)


class UnreadableTask(ValueError):
    """A task that this process can't work on; ``remedy`` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class SealedTask:
    """A row of the table; ``unseal`` turns it into a task."""

    row: Row

    @property
    def task_pk(self) -> int:
        return int(self.row[0])

    @property
    def task_id(self) -> bytes:
        return bytes(self.row[1])

    @property
    def id_text(self) -> str:
        """The task id in base64url, as ``Task.id_text``."""
        return b64url_encode(self.task_id)

    @property
    def role(self) -> Role:
        return Role.LEADER if self.row[2] == "leader" else Role.HELPER

    @property
    def state(self) -> TaskState:
        return TaskState(self.row[15])

    @property
    def marks(self) -> tuple[int, int]:
        """``expired_before`` and ``quarantined_before``."""
        return self.row[12], self.row[13]

    def public(self) -> Task:
        """Return the task with empty secrets, for reading.

        Raises ``UnreadableTask`` if the task is of another version of DAP.
        """
        (
            task_pk, task_id, _, configuration, _, verification_key_id, hpke_config,
            _, token_hashes, mode, target, age, expired_before, quarantined_before,
            peer_accepted, _, dap_version,
        ) = self.row  # fmt: skip
        if dap_version != DAP_VERSION:
            raise UnreadableTask(
                f"its version is {dap_version}, this dapd speaks {DAP_VERSION}",
                f"run a dapd that speaks {dap_version}",
            )
        return Task(
            task_pk=task_pk,
            task_id=task_id,
            role=self.role,
            configuration_bytes=configuration,
            verify_key=b"",
            verification_key_id=verification_key_id,
            collector_hpke_config=HpkeConfig.decode(hpke_config),
            aggregator_token=None,
            inbound_token_hashes=_split(token_hashes),
            settings=TaskSettings(mode, target, age),
            expired_before=expired_before,
            quarantined_before=quarantined_before,
            peer_accepted=bool(peer_accepted),
            state=self.state,
        )

    def is_readable(self, sealer: Sealer) -> bool:
        """Return whether ``unseal`` succeeds."""
        try:
            self.unseal(sealer)
        except UnreadableTask:
            return False
        return True

    def unseal(self, sealer: Sealer) -> Task:
        """Return the task with its secrets. Raises ``UnreadableTask``."""
        public = self.public()
        verify_key, token = self.row[4], self.row[7]
        try:
            return replace(
                public,
                verify_key=sealer.open(verify_key_aad(self.task_id), verify_key),
                aggregator_token=sealer.open(token_aad(self.task_id), token or b"").decode()
                if public.is_leader
                else None,
            )
        except ValueError as error:
            raise UnreadableTask(
                f"its secrets can't be opened: {error}",
                "restore them from its file with `dapd task rekey FILE`",
            ) from None


@dataclass(frozen=True, slots=True)
class Outline:
    """The parts of a task that can be read without its sealing key."""

    task_pk: int
    task_id: bytes
    is_leader: bool
    configuration: TaskConfiguration
    quarantined_before: int

    @property
    def by_time(self) -> bool:
        return self.configuration.batch_mode is BatchMode.TIME_INTERVAL

    @property
    def id_text(self) -> str:
        """The task id in base64url, as in URLs and logs."""
        return b64url_encode(self.task_id)


Known = TypeVar("Known", SealedTask, Outline)


def named(known: Sequence[Known], prefix: str) -> Known:
    """Return the only one of these tasks whose id has this prefix. Raises ``UsageError``."""
    found = [each for each in known if each.id_text.startswith(prefix)]
    if len(found) != 1:
        what = f"{len(found)} tasks begin" if found else "no task begins"
        raise UsageError(f"{what} with {prefix}; `dapd task list` shows them")
    return found[0]


def all_tasks(tx: Tx) -> list[SealedTask]:
    """Return every task, still sealed."""
    return list(each_task(tx))


def each_task(tx: Tx) -> Iterator[SealedTask]:
    """Yield every task, still sealed."""
    return map(SealedTask, tx.each(_Q_ALL))


def outlines(tx: Tx) -> list[Outline]:
    """Return every task except tombstones, also those whose sealing key is missing."""
    return [
        Outline(pk, task_id, role == "leader", TaskConfiguration.decode(configuration), before)
        for pk, task_id, role, configuration, before in tx.all(_Q_OUTLINES)
    ]


def find(tx: Tx, task_id: bytes) -> SealedTask | None:
    """Return the task with this id, still sealed."""
    row = tx.one(_Q_ONE, task_id=task_id)
    return SealedTask(row) if row else None


def insert(tx: Tx, task: Task, sealer: Sealer) -> Task:
    """Insert a task, and return it with its ``task_pk``."""
    row = tx.one(
        _Q_INSERT,
        task_id=task.task_id,
        role="leader" if task.is_leader else "helper",
        dap_version=DAP_VERSION,
        configuration=task.configuration_bytes,
        peer=task.configuration.helper_aggregator_endpoint if task.is_leader else "",
        **_given(task, sealer),
    )
    assert row is not None
    return replace(task, task_pk=row[0])


def revive(tx: Tx, task_pk: int, task: Task, sealer: Sealer) -> bool:
    """Turn a tombstone into ``task``, keeping its watermarks (D6); return whether it was one."""
    return bool(tx.execute(_Q_REVIVE, task_pk=task_pk, **_given(task, sealer)))


def set_state(tx: Tx, task_pk: int, state: TaskState) -> bool:
    """Change the state of a task that is not deleted; return whether it had another one."""
    return bool(tx.execute(_Q_STATE, task_pk=task_pk, state=state.value))


def delete(tx: Tx, task_pk: int, mark: int) -> bool:
    """Mark a task deleted, for the garbage collector, and raise its watermark to ``mark`` (D6).

    Return ``False`` if it was deleted before.
    """
    return bool(tx.execute(_Q_DELETE, task_pk=task_pk, mark=mark))


def set_secrets(tx: Tx, task: Task, sealer: Sealer) -> None:
    """Seal and store the verify key and the tokens of ``task``."""
    secrets = ("verify_key", "aggregator_token", "inbound_token_hashes")
    given = _given(task, sealer)
    tx.execute(_Q_SECRETS, task_pk=task.task_pk, **{name: given[name] for name in secrets})


def set_inbound_tokens(tx: Tx, task_pk: int, hashes: Sequence[bytes]) -> None:
    """Replace the hashes of the inbound tokens, the only ones accepted from now on."""
    tx.execute(_Q_INBOUND, task_pk=task_pk, hashes=b"".join(hashes))


def set_outbound_token(tx: Tx, task: Task, token: str, sealer: Sealer) -> None:
    """Replace the token that this Leader sends to its Helper."""
    sealed = sealer.seal(token_aad(task.task_id), token.encode())
    tx.execute(_Q_OUTBOUND, task_pk=task.task_pk, token=sealed)


def set_settings(tx: Tx, task_pk: int, settings: TaskSettings) -> None:
    """Replace the settings, which are local to this Aggregator."""
    tx.execute(
        _Q_SETTINGS,
        task_pk=task_pk,
        helper_mode=settings.helper_mode,
        batch_target_size=settings.batch_target_size,
        report_expiry_age=settings.report_expiry_age,
    )
    outstanding.look_again_at_all(tx, task_pk)


def note_peer_accepted(tx: Tx, task_pk: int) -> None:
    """Note that the Helper has finished a job of this task, so it knows the task (rule D5)."""
    tx.execute(_Q_PEER_ACCEPTED, task_pk=task_pk)


def takes_uploads(tx: Tx, task_pk: int) -> bool:
    """Return whether to accept an upload that was admitted before its task's state changed."""
    row = tx.one(_Q_TAKES_UPLOADS, task_pk=task_pk)
    return bool(row and row[0])


def has_rows(tx: Tx, task_pk: int) -> bool:
    """Return whether a task still has rows that grow with its reports; counters don't."""
    row = tx.one(_Q_HAS_ROWS, task_pk=task_pk)
    return bool(row and row[0])


def purge(tx: Tx, task_pk: int) -> bool:
    """Turn a deleted task without rows into a tombstone, and erase its secrets."""
    return bool(tx.execute(_Q_PURGE, task_pk=task_pk))


def _given(task: Task, sealer: Sealer) -> dict[str, object]:
    """Return the columns that come from a task file and the local settings."""
    token = task.aggregator_token
    return {
        "verify_key": sealer.seal(verify_key_aad(task.task_id), task.verify_key),
        "verification_key_id": task.verification_key_id,
        "collector_hpke_config": task.collector_hpke_config.encode(),
        "aggregator_token": sealer.seal(token_aad(task.task_id), token.encode()) if token else None,
        "inbound_token_hashes": b"".join(task.inbound_token_hashes),
        "helper_mode": task.settings.helper_mode,
        "batch_target_size": task.settings.batch_target_size,
        "report_expiry_age": task.settings.report_expiry_age,
    }


def _split(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(hashes[at : at + TOKEN_HASH_SIZE] for at in range(0, len(hashes), TOKEN_HASH_SIZE))
