"""The database: transactions on SQLite, leases, and one module per family of tables.

A transaction is a plain synchronous function of a ``Tx``. ``dapd.commits`` combines the table
modules into the transactions that must be atomic.
"""

from dapd.datastore.opening import Opened, open_for_command, open_for_daemon
from dapd.datastore.sqlite import Datastore, Tx

__all__ = ["Datastore", "Opened", "Tx", "open_for_command", "open_for_daemon"]
