"""dapd: a Distributed Aggregation Protocol (DAP-18) Aggregator, and its client and collector.

Programs import ``dapd.client`` and ``dapd.collector``, tests ``dapd.testing``; all other modules
belong to the daemon.
"""

__version__ = "0.1.0"
