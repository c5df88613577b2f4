"""The side of two Aggregators that Clients see, on a scripted server, with real cryptography."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from dapd.crypto import HpkeKeypair, Keyring, make_sealer
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType
from dapd.protocol.task import TaskSettings
from dapd.reports import ReplayIndex, ReportRules, open_uploads
from dapd.taskfile import TaskDraft, TaskFiles, aggregator_task, new_task
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import X25519

PRECISION = 100
NOW = 1_000_050


def make_task(url: str, **keys: object) -> TaskFiles:
    """A task whose two endpoints are below ``url``."""
    draft = {
        "leader_aggregator_endpoint": f"{url}/leader/",
        "helper_aggregator_endpoint": f"{url}/helper",
        "time_precision": PRECISION,
        "min_batch_size": 2,
        "batch_mode": "time-interval",
        "vdaf": {"type": "histogram", "length": 4, "chunk_length": 2},
        **keys,
    }
    return new_task(TaskDraft(**draft), allow_insecure_http=True)  # type: ignore[arg-type]


def beyond_loopback(url: str) -> str:
    """Return the URL of a peer on this machine with a host that rule B7 takes for another's."""
    return url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104 - connected to, not bound


@dataclass
class ScriptedAggregators:
    """Answers ``hpke_config`` and ``reports`` as the draft says.

    What ``disturb`` returns is sent in place of that answer, after the Leader has acted.
    """

    disturb: Callable[[Request], bytes | None] = lambda _: None
    leader_keys: list[HpkeKeypair] = field(
        default_factory=lambda: [HpkeKeypair.generate(1, *X25519)]
    )
    cache_control: str = "max-age=86400"
    too_early_after: int = NOW // PRECISION
    accepted: int = 0

    async def serve(self, nursery: trio.Nursery) -> TaskFiles:
        self.server = ScriptedServer(self._answer)
        self.files = make_task(await self.server.serve(nursery))
        self._sealer = make_sealer([bytes(32)])
        self._replay = ReplayIndex()
        self._helper_key = HpkeKeypair.generate(9, *X25519)
        return self.files

    def targets(self) -> list[str]:
        return [request.target.rpartition("/")[2] for request in self.server.requests]

    def _answer(self, request: Request) -> bytes:
        reply = self._reply(request)
        disturbed = self.disturb(request)
        return reply if disturbed is None else disturbed

    def _reply(self, request: Request) -> bytes:
        match request.target.rpartition("/")[2]:
            case "hpke_config":
                keys = self.leader_keys if "leader" in request.target else [self._helper_key]
                configs = HpkeConfigList(tuple(HpkeConfig(*key.config) for key in keys))
                return answer(
                    200,
                    configs.encode(),
                    Content_Type=MediaType.HPKE_CONFIG_LIST,
                    Cache_Control=self.cache_control,
                )
            case _:
                return self._take(request.body)

    def _take(self, body: bytes) -> bytes:
        task = aggregator_task(self.files.leader, TaskSettings())
        rules = ReportRules(
            too_early_after=self.too_early_after, task_start=0, task_end=2**63, expired_before=5
        )
        group = open_uploads(
            [(task.parameters, rules, body)], Keyring(self.leader_keys), self._sealer
        )
        taken = [self._replay.admit(1, part.ids) for part in group.parts]
        codes = [bytes(2 * known for known in column) for column in taken]
        [result] = group.answers(codes)
        self.accepted += result.outcomes.get(0, 0)
        if not result.upload_errors:
            return answer(200)
        return answer(200, result.upload_errors, Content_Type=MediaType.UPLOAD_ERRORS)
