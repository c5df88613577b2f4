"""The HPKE key pairs, live. An unknown config id reads them again before it rejects (rule F1)."""

from __future__ import annotations

import trio

from dapd.crypto import Keyring, Sealer
from dapd.datastore import Datastore
from dapd.datastore import keys as table
from dapd.datastore.keys import StoredKeypair
from dapd.messages.common import HpkeConfig, HpkeConfigList

_AT_MOST_EVERY = 1.0


class Keyrings:
    """``keyring`` opens with every kept key; ``published`` lists the active ones, newest first."""

    def __init__(self, datastore: Datastore, sealer: Sealer) -> None:
        self._datastore = datastore
        self._sealer = sealer
        self._lock = trio.Lock()
        self._looked_at = -_AT_MOST_EVERY
        self.keyring = Keyring([])
        self.published = b""

    async def for_ids(self, config_ids: bytes) -> Keyring:
        """A keyring that knows ``config_ids``, as far as the database does."""
        if set(config_ids) - set(self.keyring.config_ids):
            await self.refresh()
        return self.keyring

    async def refresh(self) -> None:
        """Read the table, single flight and at most once a second: uploads are open to all."""
        async with self._lock:
            if trio.current_time() - self._looked_at < _AT_MOST_EVERY:
                return
            self._looked_at = trio.current_time()
            self._use(await self._datastore.read(table.all_keypairs, self._sealer))

    def _use(self, stored: list[StoredKeypair]) -> None:
        self.keyring = Keyring([each.keypair for each in stored])
        active = [each.keypair.config for each in stored if each.state == "active"]
        self.published = HpkeConfigList(tuple(HpkeConfig(*config) for config in active)).encode()
