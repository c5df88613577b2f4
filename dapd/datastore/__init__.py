"""Where dapd's state lives: engines that run transactions, and one module per table family.

A transaction is a plain synchronous function of a ``Tx``; ``commits`` combines the table modules
into the transactions that carry a promise.
"""

from dapd.datastore.opening import Opened, open_for_command, open_for_daemon
from dapd.datastore.sqlite import Datastore, Tx

__all__ = ["Datastore", "Opened", "Tx", "open_for_command", "open_for_daemon"]
