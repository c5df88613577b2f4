"""The transactions that must be atomic, one module per subject: plain functions of a ``Tx``.

Only these combine the table modules of ``dapd.datastore``. Each may be run again from its start:
its first statement claims its own record (rule D1).
"""
