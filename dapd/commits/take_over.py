"""What a process does first with a datastore: its sealing keys fit, and the first one is noted."""

from __future__ import annotations

from collections.abc import Sequence

from dapd.datastore import sealed
from dapd.datastore.engines import Tx
from dapd.errors import UsageError


def check_sealing_keys(tx: Tx, held: Sequence[bytes]) -> None:
    """``held`` are the ids of the configured keys; the first one seals from now on (rule F2).

    Raises ``UsageError`` as ``require_sealing_keys``.
    """
    require_sealing_keys(tx, held)
    if held[0] not in sealed.sealing_key_ids(tx):
        sealed.note_sealing_key(tx, held[0])


def require_sealing_keys(tx: Tx, held: Sequence[bytes]) -> None:
    """Raise ``UsageError`` that names every key which the database uses and ``held`` lacks."""
    known = sealed.sealing_key_ids(tx)
    if missing := [key_id for key_id in known if key_id not in held]:
        names = ", ".join(key_id.hex() for key_id in missing)
        raise UsageError(
            f"the database holds values sealed with key {names}, which [datastore] sealing_keys "
            "lacks; add that key's file to the list, or if it is lost for good, see "
            "`dapd datastore forget-key --help`"
        )
