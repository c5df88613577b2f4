"""A real Leader and a real Helper in one process, for tests of DAP clients and collectors.

    async with running_pair(tmp_path) as pair:              # in a Trio program
        task = await pair.new_task("histogram:length=4", min_batch_size=3)
        await task.upload([0, 1, 1])
        result = await task.collect()

Both serve over loopback sockets and keep SQLite files in the given directory. Tests without Trio
use the pytest fixture ``dap_pair``, which is installed with dapd (``docs/testing-your-client.md``).
"""

from dapd.testing.pair import Pair, PairTask, running_pair

__all__ = ["Pair", "PairTask", "running_pair"]
