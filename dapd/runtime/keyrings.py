"""The HPKE key pairs in memory, read again when another process has changed them, and before dapd
rejects an unknown config id (rules E5, F1).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from dapd.crypto import HpkeKeypair, Keyring, Sealer
from dapd.datastore import Datastore
from dapd.datastore import keys as table
from dapd.datastore.keys import SealedKeypair
from dapd.messages.common import HpkeConfig, HpkeConfigList
from dapd.protocol.keys import KeyState

_log = structlog.get_logger()
_AT_MOST_EVERY = 1.0


class Keyrings:
    """The Aggregator's HPKE keys.

    ``keyring`` opens with every key that is kept; ``published`` is the encoded list of the active
    ones, newest first.
    """

    def __init__(self, datastore: Datastore, sealer: Sealer) -> None:
        self._datastore = datastore
        self._sealer = sealer
        self._lock = trio.Lock()
        self._looked_at = -_AT_MOST_EVERY
        self._version: int | None = None
        self._unreadable: set[int] = set()
        self.keyring = Keyring([])
        self.published = b""

    async def for_ids(self, config_ids: bytes) -> Keyring:
        """Return a keyring with those of ``config_ids`` that are in the database.

        For this the database is read at most once a second, as anyone may upload any id.
        """
        if set(config_ids) - set(self.keyring.config_ids):
            async with self._lock:
                if trio.current_time() - self._looked_at >= _AT_MOST_EVERY:
                    await self._load()
        return self.keyring

    async def refresh(self) -> None:
        """Read the table if another process has committed since it was last read (rule E5)."""
        async with self._lock:
            version = await self._datastore.data_version()
            if version != self._version:
                await self._load()
                self._version = version

    async def reload(self) -> None:
        """Read the table now, after this process has changed it."""
        async with self._lock:
            await self._load()

    async def _load(self) -> None:
        self._looked_at = trio.current_time()
        self._use(await self._datastore.read(table.kept_keypairs))

    def _use(self, stored: Sequence[SealedKeypair]) -> None:
        opened = [(each, keypair) for each in stored if (keypair := self._unseal(each))]
        self.keyring = Keyring([keypair for _, keypair in opened])
        active = [keypair.config for each, keypair in opened if each.state is KeyState.ACTIVE]
        if active:  # else keep the published list: an empty one would stop all uploads
            configs = tuple(HpkeConfig(*config) for config in active)
            self.published = HpkeConfigList(configs).encode()

    def _unseal(self, sealed: SealedKeypair) -> HpkeKeypair | None:
        """Unseal a key pair; if its sealing key is missing, log that once and return ``None``."""
        try:
            return sealed.unseal(self._sealer)
        except ValueError as error:
            if sealed.config_id not in self._unreadable:
                self._unreadable.add(sealed.config_id)
                _log.error(
                    "hpke_key_unreadable",
                    config_id=sealed.config_id,
                    error=str(error),
                    effect="dapd can't open reports encrypted to this key",
                    remedy="add its sealing key to [datastore] sealing_keys and restart",
                )
            return None
