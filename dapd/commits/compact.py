"""The transaction that puts one contribution in the place of many that add up to the same.

They were added up outside of it. Like every commit it claims first, here by deleting exactly what
was added up; a batch that is closed or collected is left as it is, since its sum is fixed or about
to go. Nothing else refers to a contribution's ``job_id``: a Helper's job keeps a list of buckets of
its own (rule A7), and a collection that was being summed notices (``batches.extent``).
"""

from __future__ import annotations

from collections.abc import Sequence

from dapd.datastore import batches
from dapd.datastore.batches import Contribution
from dapd.datastore.engines import Tx


class ContributionsChangedError(Exception):
    """The contributions are not what they were when they were added up, or their batch is shut."""


def compact(tx: Tx, task_pk: int, share_pks: Sequence[int], merged: Contribution) -> None:
    """Replace the rows ``share_pks`` of the bucket of ``merged`` by it.

    Raises ``ContributionsChangedError``, which undoes everything.
    """
    if not batches.replace_contributions(tx, task_pk, share_pks, merged):  # D1
        raise ContributionsChangedError
    if batches.bucket_state(tx, task_pk, merged.bucket) is not None:
        raise ContributionsChangedError
