"""The table of tasks: keys and outbound tokens sealed, inbound tokens hashed (I9)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dapd.crypto import TOKEN_HASH_SIZE, Sealer, token_aad, verify_key_aad
from dapd.datastore.engines import Row, Tx
from dapd.messages.common import HpkeConfig, Role
from dapd.protocol.task import Task, TaskSettings, TaskState

DAP_VERSION = "dap-18"

_COLUMNS = """task_pk, task_id, role, configuration, verify_key, verification_key_id,
collector_hpke_config, aggregator_token, inbound_token_hashes, helper_mode, batch_target_size,
report_expiry_age, expired_before, quarantined_before, peer_accepted, state"""
_Q_ALL = f"SELECT {_COLUMNS} FROM tasks ORDER BY task_pk"  # noqa: S608 - constants alone
_Q_ONE = f"SELECT {_COLUMNS} FROM tasks WHERE task_id = :task_id"  # noqa: S608 - constants alone
_Q_INSERT = """
INSERT INTO tasks (task_id, role, dap_version, configuration, verify_key, verification_key_id,
  collector_hpke_config, aggregator_token, inbound_token_hashes, helper_mode, batch_target_size,
  report_expiry_age)
VALUES (:task_id, :role, :dap_version, :configuration, :verify_key, :verification_key_id,
  :collector_hpke_config, :aggregator_token, :inbound_token_hashes, :helper_mode,
  :batch_target_size, :report_expiry_age)
RETURNING task_pk"""
_Q_SETTINGS = """
UPDATE tasks SET helper_mode = :helper_mode, batch_target_size = :batch_target_size,
  report_expiry_age = :report_expiry_age WHERE task_pk = :task_pk"""
_Q_EXPIRED_BEFORE = "SELECT expired_before, quarantined_before FROM tasks WHERE task_pk = :task_pk"
_Q_PEER_ACCEPTED = (
    "UPDATE tasks SET peer_accepted = 1 WHERE task_pk = :task_pk AND peer_accepted = 0"
)


@dataclass(frozen=True, slots=True)
class SealedTask:
    """A row of the table; ``unseal`` makes the task of it."""

    row: Row

    @property
    def task_id(self) -> bytes:
        return bytes(self.row[1])

    def unseal(self, sealer: Sealer) -> Task:
        """Raises ``ValueError`` if the sealing key is not at hand."""
        (
            task_pk, task_id, role, configuration, verify_key, verification_key_id, hpke_config,
            token, token_hashes, mode, target, age, expired_before, quarantined_before,
            peer_accepted, state,
        ) = self.row  # fmt: skip
        return Task(
            task_pk=task_pk,
            task_id=task_id,
            role=Role.LEADER if role == "leader" else Role.HELPER,
            configuration_bytes=configuration,
            verify_key=sealer.open(verify_key_aad(task_id), verify_key),
            verification_key_id=verification_key_id,
            collector_hpke_config=HpkeConfig.decode(hpke_config),
            aggregator_token=sealer.open(token_aad(task_id), token).decode() if token else None,
            inbound_token_hashes=_split(token_hashes),
            settings=TaskSettings(mode, target, age),
            expired_before=expired_before,
            quarantined_before=quarantined_before,
            peer_accepted=bool(peer_accepted),
            state=TaskState(state),
        )


def all_tasks(tx: Tx) -> list[SealedTask]:
    """Every task, still sealed."""
    return [SealedTask(row) for row in tx.all(_Q_ALL)]


def find(tx: Tx, task_id: bytes) -> SealedTask | None:
    """The task with this id, still sealed."""
    row = tx.one(_Q_ONE, task_id=task_id)
    return SealedTask(row) if row else None


def insert(tx: Tx, task: Task, sealer: Sealer) -> Task:
    """Store a task whose ``task_pk`` is not known yet; the stored one."""
    token = task.aggregator_token
    row = tx.one(
        _Q_INSERT,
        task_id=task.task_id,
        role="leader" if task.is_leader else "helper",
        dap_version=DAP_VERSION,
        configuration=task.configuration_bytes,
        verify_key=sealer.seal(verify_key_aad(task.task_id), task.verify_key),
        verification_key_id=task.verification_key_id,
        collector_hpke_config=task.collector_hpke_config.encode(),
        aggregator_token=sealer.seal(token_aad(task.task_id), token.encode()) if token else None,
        inbound_token_hashes=b"".join(task.inbound_token_hashes),
        helper_mode=task.settings.helper_mode,
        batch_target_size=task.settings.batch_target_size,
        report_expiry_age=task.settings.report_expiry_age,
    )
    assert row is not None
    return replace(task, task_pk=row[0])


def set_settings(tx: Tx, task_pk: int, settings: TaskSettings) -> None:
    """Change what is local to this Aggregator."""
    tx.execute(
        _Q_SETTINGS,
        task_pk=task_pk,
        helper_mode=settings.helper_mode,
        batch_target_size=settings.batch_target_size,
        report_expiry_age=settings.report_expiry_age,
    )


def note_peer_accepted(tx: Tx, task_pk: int) -> None:
    """The Helper has answered a job of this task with a result: it knows the task (rule D5)."""
    tx.execute(_Q_PEER_ACCEPTED, task_pk=task_pk)


def refused_before(tx: Tx, task_pk: int) -> int:
    """Reports below this are dropped, as far as it is stored: what a transaction must not admit,
    whatever the mark was when its reports were verified (rule D6).
    """
    row = tx.one(_Q_EXPIRED_BEFORE, task_pk=task_pk)
    return max(row) if row else 0


def _split(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(hashes[at : at + TOKEN_HASH_SIZE] for at in range(0, len(hashes), TOKEN_HASH_SIZE))
