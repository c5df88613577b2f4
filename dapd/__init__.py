"""dapd: a Distributed Aggregation Protocol (DAP-18) Aggregator, and its client and collector.

Programs use ``dapd.client`` and ``dapd.collector``, tests use ``dapd.testing``; the rest is
the daemon.
"""

__version__ = "0.1.0"
