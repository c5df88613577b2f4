"""HPKE key pairs, with sealed private keys."""

from __future__ import annotations

from dataclasses import dataclass

from dapd.crypto import HpkeKeypair, Sealer, hpke_private_key_aad
from dapd.datastore.sqlite import Tx
from dapd.protocol.keys import KeyState, StoredKey, Suite

_Q_ALL = """
SELECT config_id, kem_id, kdf_id, aead_id, state, changed_at, cached_for FROM hpke_keypairs
ORDER BY config_id"""
_Q_KEPT = """
SELECT config_id, kem_id, kdf_id, aead_id, public_key, private_key, state FROM hpke_keypairs
WHERE state <> 'deleted' ORDER BY changed_at DESC, config_id"""
_Q_INSERT = """
INSERT INTO hpke_keypairs
  (config_id, kem_id, kdf_id, aead_id, public_key, private_key, state, changed_at)
VALUES (:config_id, :kem_id, :kdf_id, :aead_id, :public_key, :private_key, :state, :now)
ON CONFLICT (config_id) DO UPDATE SET kem_id = excluded.kem_id, kdf_id = excluded.kdf_id,
  aead_id = excluded.aead_id, public_key = excluded.public_key,
  private_key = excluded.private_key, state = excluded.state, changed_at = excluded.changed_at,
  cached_for = 0
WHERE hpke_keypairs.state = 'deleted'"""
_Q_MOVE = """
UPDATE hpke_keypairs SET state = :to, changed_at = :now,
  private_key = CASE :to WHEN 'deleted' THEN x'' ELSE private_key END
WHERE config_id = :config_id AND state = :was"""
_Q_NOTE_CACHED = """
UPDATE hpke_keypairs SET cached_for = :max_age WHERE state = 'active' AND cached_for < :max_age"""


@dataclass(frozen=True, slots=True)
class SealedKeypair:
    """A key pair that is not deleted; ``unseal`` opens its private key."""

    config_id: int
    suite: Suite
    public_key: bytes
    private_key: bytes
    state: KeyState

    def unseal(self, sealer: Sealer) -> HpkeKeypair:
        """Open the private key. Raises ``ValueError`` if ``sealer`` lacks the sealing key."""
        opened = sealer.open(
            hpke_private_key_aad(self.config_id, self.public_key), self.private_key
        )
        return HpkeKeypair(self.config_id, *self.suite, self.public_key, opened)


def all_keys(tx: Tx) -> list[StoredKey]:
    """Return the latest key pair of every id that was ever used."""
    return [
        StoredKey(config_id, (kem, kdf, aead), KeyState(state), changed_at, cached_for)
        for config_id, kem, kdf, aead, state, changed_at, cached_for in tx.all(_Q_ALL)
    ]


def kept_keypairs(tx: Tx) -> list[SealedKeypair]:
    """Return every key pair that is not deleted, still sealed, the newest first."""
    return [
        SealedKeypair(config_id, (kem, kdf, aead), public, private, KeyState(state))
        for config_id, kem, kdf, aead, public, private, state in tx.all(_Q_KEPT)
    ]


def insert_keypair(tx: Tx, keypair: HpkeKeypair, sealer: Sealer, state: str, now: int) -> bool:
    """Store a key pair; return ``False`` if its id is in use."""
    config_id, kem, kdf, aead, public = keypair.config
    rows = tx.execute(
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
    return rows == 1


def move(tx: Tx, config_id: int, was: KeyState, to: KeyState, now: int) -> bool:
    """Move a key pair to another state; return ``False`` if it is not in the state ``was``.

    Moving it to ``deleted`` erases its private key.
    """
    return tx.execute(_Q_MOVE, config_id=config_id, was=was, to=to, now=now) == 1


def note_cached(tx: Tx, max_age: int) -> None:
    """Note that Clients may cache the active keys for ``max_age``, in milliseconds."""
    tx.execute(_Q_NOTE_CACHED, max_age=max_age)
