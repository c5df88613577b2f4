"""First boot: an Aggregator without an active HPKE key gets one, once."""

from __future__ import annotations

from dapd.crypto import HpkeKeypair, Sealer
from dapd.datastore import keys
from dapd.datastore.engines import Tx

X25519_SHA256_AES128 = (0x0020, 0x0001, 0x0001)
"""The draft's mandatory suite (section "Compliance Requirements")."""


def ensure_active_key(tx: Tx, sealer: Sealer, now: int) -> HpkeKeypair | None:
    """The key pair that was made, or ``None`` if one is active already."""
    stored = keys.all_keypairs(tx, sealer)
    if any(each.state == "active" for each in stored):
        return None
    used = {each.keypair.config[0] for each in stored}
    config_id = next(number for number in range(1, 256) if number not in used)
    keypair = HpkeKeypair.generate(config_id, *X25519_SHA256_AES128)
    keys.insert_keypair(tx, keypair, sealer, "active", now)
    return keypair
