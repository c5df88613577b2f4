"""HPKE key pairs, whose private halves are sealed, and the ids of the sealing keys in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapd.crypto import HpkeKeypair, Sealer, hpke_private_key_aad
from dapd.datastore.engines import Tx

_Q_ALL = """
SELECT config_id, kem_id, kdf_id, aead_id, public_key, private_key, state, changed_at
FROM hpke_keypairs ORDER BY changed_at DESC, config_id"""
_Q_INSERT = """
INSERT INTO hpke_keypairs
  (config_id, kem_id, kdf_id, aead_id, public_key, private_key, state, changed_at)
VALUES (:config_id, :kem_id, :kdf_id, :aead_id, :public_key, :private_key, :state, :now)"""
_Q_SEALING = "SELECT key_id FROM sealing_keys"
_Q_NOTE_SEALING = "INSERT INTO sealing_keys (key_id) VALUES (:key_id) ON CONFLICT DO NOTHING"


@dataclass(frozen=True, slots=True)
class StoredKeypair:
    """A key pair and its state: ``pending``, ``active`` or ``expired``; ``changed_at`` is in ms."""

    keypair: HpkeKeypair
    state: str
    changed_at: int


def all_keypairs(tx: Tx, sealer: Sealer) -> list[StoredKeypair]:
    """Every kept key pair, the newest first. Raises ``ValueError`` without its sealing key."""
    found = []
    for config_id, kem, kdf, aead, public, private, state, changed_at in tx.all(_Q_ALL):
        opened = sealer.open(hpke_private_key_aad(config_id, public), private)
        found.append(
            StoredKeypair(HpkeKeypair(config_id, kem, kdf, aead, public, opened), state, changed_at)
        )
    return found


def insert_keypair(tx: Tx, keypair: HpkeKeypair, sealer: Sealer, state: str, now: int) -> None:
    """Store a key pair; its id must be free."""
    config_id, kem, kdf, aead, public = keypair.config
    tx.execute(
        _Q_INSERT,
        config_id=config_id,
        kem_id=kem,
        kdf_id=kdf,
        aead_id=aead,
        public_key=public,
        private_key=sealer.seal(hpke_private_key_aad(config_id, public), keypair.private_key),
        state=state,
        now=now,
    )


def missing_sealing_keys(tx: Tx, held: Sequence[bytes]) -> list[bytes]:
    """The ids of sealing keys that the database may have used and that are not ``held`` (F2)."""
    return [row[0] for row in tx.all(_Q_SEALING) if row[0] not in held]


def note_sealing_key(tx: Tx, key_id: bytes) -> None:
    """From now on values may be sealed with this key."""
    tx.execute(_Q_NOTE_SEALING, key_id=key_id)
