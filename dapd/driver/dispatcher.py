"""The dispatcher: lease the jobs that can start now, and run a step of each in its own Trio task.

Events wake it, or the next ``run_at``. A step that computes needs a slot, one that exchanges needs
a permit of its peer; no slot ever sleeps (I5). Left out: what a step does.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
import trio
from structlog.contextvars import bound_contextvars

from dapd.datastore import leases
from dapd.datastore.leases import (
    LEASE_MS,
    LONGEST_CRASH_WAIT_MS,
    LONGEST_WAIT_MS,
    Due,
    Lease,
    Scope,
)
from dapd.driver.step import RunStep, Step
from dapd.errors import DatastoreError, describe
from dapd.messages.common import b64url_encode
from dapd.protocol.retry import backoff_ms
from dapd.protocol.states import COMPUTING, EXCHANGING
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer

_log = structlog.get_logger()
_FALLBACK_POLL = 5.0
_CLOCK_SET_BACK_MS = 1000
"""The dispatcher notices that the machine's clock was set back since the last round by so much."""
_LEASED_PER_SLOT = 2  # so that a slot never waits for the leasing commit


class Dispatcher:
    """Leases due jobs and steps them, as many at once as slots and permits allow.

    ``steps`` has the step for each (kind, role), such as ("aggregation", "leader").
    """

    def __init__(
        self, context: Context, steps: Mapping[tuple[str, str], RunStep], slots: int
    ) -> None:
        self._context = context
        self._steps = steps
        self._slots = trio.CapacityLimiter(slots)
        self._held: dict[bytes, Step] = {}
        self._clock_offset: int | None = None
        self._served_since: dict[int, int] = {}

    async def run(self) -> None:
        """Dispatch until the daemon drains, then wait for the steps under way."""
        async with trio.open_nursery() as keeper:
            keeper.start_soon(self._keep_leases)
            async with trio.open_nursery() as nursery:
                await self._dispatch_until_draining(nursery)
            keeper.cancel_scope.cancel()

    async def _dispatch_until_draining(self, nursery: trio.Nursery) -> None:
        context = self._context
        while not context.draining.is_set():
            wait = _FALLBACK_POLL
            try:
                wait = await self.dispatch(nursery)
            except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
                _log.exception(
                    "dispatch_failed",
                    remedy="dapd tries again; if this repeats, run `dapd datastore check`",
                )
            await context.jobs.wait(wait)

    async def dispatch(self, nursery: trio.Nursery) -> float:
        """Start a step in ``nursery`` for each job that can start now. Return in how many seconds
        to look again.
        """
        context = self._context
        permits = context.config.leader.permits_per_peer
        free = defaultdict(lambda: permits, context.peers.free())
        blocked = [endpoint for endpoint, left in free.items() if left <= 0]
        scope = Scope(tuple(context.tasks.unreadable), blocked, permits)
        chooser = _Chooser(self._endpoint, free, self._free_slots(), list(self._held.values()))
        at = context.instant()
        now = at.now
        self._served_since |= dict.fromkeys(context.tasks.unserved, at.safe)
        leased, next_run_at = await context.run(
            leases.lease_due, now, chooser.choose, scope, longest_wait=self._longest_wait(now)
        )
        for reason, jobs in chooser.passed_over.items():
            context.metrics.not_stepped.labels(reason).inc(jobs)
        for lease in leased:
            step = self._held[lease.token] = self._step_of(lease)
            nursery.start_soon(self._run, step)
        unblocked = context.peers.next_unblocked(now)
        upcoming = [at for at in (next_run_at, unblocked) if at is not None]
        return min([_FALLBACK_POLL, *((at - now) / 1000 for at in upcoming)])

    def _longest_wait(self, now: int) -> int:
        """Return how far ahead (ms) a ``run_at`` may be; a job with a later one counts as due (E2).

        Usually it is the longest wait that a peer can ask for, a day. In the first round, and after
        the machine's clock was set back, it is the longest that the configuration allows: no job
        waits for the wrong clock to return, and one that waits for its peer is stepped once more.
        """
        offset = now - self._context.clock.elapsed()
        before, self._clock_offset = self._clock_offset, offset
        if before is not None and offset > before - _CLOCK_SET_BACK_MS:
            return LONGEST_WAIT_MS
        limits = self._context.config.leader
        return max(int(1000 * max(limits.retry_max, limits.poll_max)), LONGEST_CRASH_WAIT_MS)

    def _free_slots(self) -> int:
        """Return how many more computing jobs to lease. Only steps that compute or wait to compute
        count: one that has gone on to its exchange needs no slot any more (I5).
        """
        now = self._slots.statistics()
        most = int(now.total_tokens) * _LEASED_PER_SLOT
        return most - now.borrowed_tokens - now.tasks_waiting

    def _endpoint(self, task_pk: int) -> str | None:
        """Return the endpoint of the task's peer; ``None`` if the task is not served."""
        task = self._context.tasks.served(task_pk)
        return None if task is None else task.configuration.helper_aggregator_endpoint

    def _peer(self, task_pk: int) -> Peer:
        configuration = self._context.tasks.by_pk(task_pk).configuration
        return self._context.peers.at(configuration.helper_aggregator_endpoint)

    def _step_of(self, lease: Lease) -> Step:
        task_pk = lease.due.task_pk
        return Step(
            lease,
            self._context.tasks.by_pk(task_pk),
            self._slots,
            self._peer(task_pk),
            served_since=self._served_since.get(task_pk, 0),
        )

    async def _run(self, step: Step) -> None:
        """Run a leased job's step, and give back what it holds."""
        context, lease, task = self._context, step.lease, step.task
        due = lease.due
        run = self._steps[due.kind, "leader" if task.is_leader else "helper"]
        try:
            with bound_contextvars(
                task_id=task.id_text, job_id=b64url_encode(due.id), kind=due.kind
            ):
                if due.state in EXCHANGING and not step.try_permit():
                    await self._release(lease, context.now())
                    return
                await self._run_guarded(run, step)
        finally:
            if step.has_permit:
                step.peer.release()
            del self._held[lease.token]
            context.jobs.ring()

    async def _run_guarded(self, run: RunStep, step: Step) -> None:
        """Run a step; if it fails, log the error and let the job back off."""
        context, lease = self._context, step.lease
        begun = time.perf_counter()
        try:
            await run(context, step)
        except Exception as error:  # noqa: BLE001
            context.metrics.steps_failed.labels(lease.due.kind).inc()
            _log.exception(
                "step_failed",
                state=lease.due.state.value,
                remedy="dapd tries again; if this repeats, see `dapd jobs show` and report this "
                "line",
            )
            limits = context.config.leader
            wait = backoff_ms(
                lease.due.attempts + 1, limits.retry_min, limits.retry_max, context.jitter()
            )
            await self._release(lease, context.now() + wait, describe(error))
        except trio.Cancelled:
            # The grace period is over (I8): the job is due at once for the next process.
            with trio.CancelScope(shield=True):
                await self._release(lease, context.now())
            raise
        finally:
            elapsed = time.perf_counter() - begun
            context.metrics.step_seconds.labels(lease.due.kind, lease.due.state.value).observe(
                elapsed
            )

    async def _release(self, lease: Lease, run_at: int, error: str | None = None) -> None:
        """Return the job to the queue. If that can't be stored, as on a full disk, the job is due
        again once its lease ends.
        """
        try:
            await self._context.run(leases.release, lease, run_at, error=error)
        except DatastoreError as failure:
            _note_unstored(failure)

    async def _keep_leases(self) -> None:
        """Renew the leases of all steps under way, well before they end."""
        context = self._context
        while True:
            await trio.sleep(LEASE_MS / 3000)
            if self._held:
                held = [step.lease for step in self._held.values()]
                try:
                    await context.run(leases.renew, held, context.now())
                except DatastoreError as failure:
                    _note_unstored(failure)


class _Chooser:
    """Chooses among the due jobs, oldest first, those for which there is a slot or a permit.

    A *suspect* is a job that may have killed the process twice. It runs alone (rule E2): once it is
    the oldest job that could start, nothing else starts until it has run. It waits for the steps
    that are ``held``, but not for their exchanges with other peers, which may take long.
    ``passed_over`` counts the jobs that were not chosen, by reason. ``endpoint_of`` returns that of
    a task's peer, or ``None`` if the task is not served; ``free`` are the permits by endpoint.
    """

    def __init__(
        self,
        endpoint_of: Callable[[int], str | None],
        free: Mapping[str, int],
        slots: int,
        held: Collection[Step] = (),
    ) -> None:
        self._endpoint_of = endpoint_of
        self._free = free
        self._slots = slots
        self._held = held
        self._taken: Counter[str] = Counter()
        self.passed_over: Counter[str] = Counter()

    def choose(self, due: Sequence[Due]) -> list[Due]:
        if any(_is_suspect(step.lease.due) for step in self._held):
            self.passed_over["runs_alone"] += len(due)
            return []
        chosen: list[Due] = []
        for job in due:
            peer = self._endpoint_of(job.task_pk)
            if peer is None:
                self.passed_over["task_not_served"] += 1
            elif _is_suspect(job):
                if not chosen and not self._is_hindered(peer) and self._reserve(job, peer):
                    return [job]
                self.passed_over["runs_alone"] += 1
                break
            elif self._reserve(job, peer):
                chosen.append(job)
        return chosen

    def _is_hindered(self, peer: str) -> bool:
        """Return whether a suspect of a task with this peer must wait for a step under way."""
        return any(
            not step.has_permit or step.task.configuration.helper_aggregator_endpoint == peer
            for step in self._held
        )

    def _reserve(self, job: Due, peer: str) -> bool:
        """Take the slot or the permit that the job's next step needs, if one is free."""
        if job.state in COMPUTING:
            if self._slots <= 0:
                self.passed_over["no_slot"] += 1
                return False
            self._slots -= 1
            return True
        if self._taken[peer] >= self._free[peer]:
            self.passed_over["no_permit"] += 1
            return False
        self._taken[peer] += 1
        return True


def _note_unstored(failure: DatastoreError) -> None:
    _log.error(
        "lease_unstored",
        error=str(failure),
        effect="a job may wait a minute longer, until its lease ends",
        remedy="check the disk; dapd tries again",
    )


def _is_suspect(job: Due) -> bool:
    return job.crashes > 1
