"""HPKE, sealing at rest and request tokens: a typed facade over ``dapd._native``.

``dapd.keys`` keeps and rotates keys; ``dapd._native`` itself opens and seals reports. Sections
"HPKE Configuration Request" and "Request Authentication"; rules A9, F2, F3.

A sealed value is ``0x01 || key id (8) || nonce (12) || ciphertext``. Its AAD is the column's name
and ids that identify the value, so a value copied to another row or column does not open.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from dapd._native import (
    HpkeKeypair,
    Keyring,
    Sealer,
    hpke_seal,
    hpke_supported,
    reseal_rows,
    row_key_ids,
)

__all__ = [
    "SEALING_KEY_SIZE",
    "TOKEN_HASH_SIZE",
    "HpkeKeypair",
    "Keyring",
    "Sealer",
    "batch_share_aad",
    "chunk_row_aad",
    "collection_share_aad",
    "hash_token",
    "hpke_private_key_aad",
    "hpke_seal",
    "hpke_supported",
    "hpke_usable",
    "leader_state_aad",
    "make_sealer",
    "reseal_rows",
    "row_key_ids",
    "seal_key_id_of",
    "sealing_key_id",
    "token_aad",
    "token_matches",
    "verify_key_aad",
]

SEALING_KEY_SIZE = 32
TOKEN_HASH_SIZE = 32
_FORMAT = 1
_KEY_ID_SIZE = 8
_NONCE_SIZE = 12
_TAG_SIZE = 16


def sealing_key_id(key: bytes) -> bytes:
    """Return the 8-byte id of a sealing key: the start of its SHA-256 (rule F2)."""
    return hashlib.sha256(key).digest()[:_KEY_ID_SIZE]


def make_sealer(keys: Sequence[bytes]) -> Sealer:
    """Build a ``Sealer`` from 32-byte keys: the first one seals, all of them open.

    Raises ``ValueError`` for no key, a key of another length, or the same key twice.
    """
    return Sealer([(sealing_key_id(key), key) for key in keys])


def seal_key_id_of(sealed: bytes) -> bytes:
    """Return the id of the key that sealed this value. Raises ``ValueError`` if it isn't sealed."""
    if len(sealed) < 1 + _KEY_ID_SIZE + _NONCE_SIZE + _TAG_SIZE or sealed[0] != _FORMAT:
        raise ValueError("not a sealed value")
    return sealed[1 : 1 + _KEY_ID_SIZE]


def verify_key_aad(task_id: bytes) -> bytes:
    """AAD of ``tasks.verify_key``."""
    return b"tasks.verify_key" + task_id


def token_aad(task_id: bytes) -> bytes:
    """AAD of ``tasks.aggregator_token``, the Leader's outbound token."""
    return b"tasks.aggregator_token" + task_id


def hpke_private_key_aad(config_id: int, public_key: bytes) -> bytes:
    """AAD of ``hpke_keypairs.private_key``."""
    return b"hpke_keypairs.private_key" + bytes([config_id]) + public_key


def hpke_usable(config: tuple[int, int, int, int, bytes]) -> bool:
    """Return whether an HPKE configuration has a supported suite and a valid public key."""
    try:
        hpke_seal(config, b"", b"", b"")
    except ValueError:
        return False
    return True


def collection_share_aad(task_id: bytes, collection_job_id: bytes) -> bytes:
    """AAD of ``collection_jobs.leader_share``: the Leader's share of a frozen batch."""
    return b"collection_jobs.leader_share" + task_id + collection_job_id


def chunk_row_aad(task_id: bytes, report_id: bytes) -> bytes:
    """AAD of one row in ``chunk_rows.rows``."""
    return b"chunk_rows.rows" + task_id + report_id


def leader_state_aad(task_id: bytes, job_id: bytes) -> bytes:
    """AAD of ``job_bodies.leader_state``."""
    return b"job_bodies.leader_state" + task_id + job_id


def batch_share_aad(task_id: bytes, job_id: bytes, bucket: bytes) -> bytes:
    """AAD of ``batch_shares.share``: one job's aggregate share for one batch bucket (rule F3)."""
    return b"batch_shares.share" + task_id + job_id + bucket


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of an inbound token, the only form in which it is stored (rule I9)."""
    return hashlib.sha256(token.encode()).digest()


def token_matches(token: str, hashes: Sequence[bytes]) -> bool:
    """Return whether ``token`` has one of these hashes, comparing in constant time (rule A9)."""
    presented = hash_token(token)
    return any(hmac.compare_digest(presented, stored) for stored in hashes)
