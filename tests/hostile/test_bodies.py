"""Bodies that no honest peer sends, on every route: refused, and nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dapd.http import Ready
from dapd.reports import parse_upload_errors
from tests.hostile.probe import (
    PROFILE,
    STILL,
    Target,
    but_for_counts,
    everything,
    ones_everywhere,
    spoilt,
    targets,
    wire_to,
)
from tests.pair_harness import TaskHarness, open_pair

ROUTES = ("reports", "collection_jobs", "aggregation_jobs", "continuation", "aggregate_shares")


async def attack(directory: Path, route: str, attacker: Callable[[Target], None]) -> None:
    """Let ``attacker`` loose on a route of a running pair, from a thread."""
    async with open_pair(directory, leader=STILL["leader"], helper=STILL["helper"]) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        exists = await hands.start_job(hands.seal([1, 1], "exists")).send()
        assert isinstance(exists, Ready)
        assert exists.location is not None
        path = exists.location.removeprefix(pair.helper.url.rstrip("/"))
        await trio.to_thread.run_sync(attacker, targets(hands, path)[route])


@contextmanager
def calm(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing that was logged is a failure."""
    yield
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert "failed" not in said


@pytest.mark.parametrize("route", ROUTES)
async def test_a_bad_body_is_refused_and_leaves_no_trace(
    tmp_path: Path, route: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Never a 5xx, never a traceback; what is refused is in no table afterwards (A3, B1)."""

    def attacker(target: Target) -> None:
        refused = 0

        @PROFILE
        @given(spoilt(target.seed))
        def probe(body: bytes) -> None:
            nonlocal refused
            before = everything(target.side)
            status, content = wire.post(target, body)
            after = everything(target.side)
            if status == 200:
                if route == "reports" and len(parse_upload_errors(content)) >= 2:
                    assert but_for_counts(after) == but_for_counts(before)
                return
            assert 400 <= status < 500, (status, content)
            assert after == before
            refused += 1

        with wire_to(target.side) as wire:
            probe()
        assert refused, "the damage was never noticed"

    with calm(capfd):
        await attack(tmp_path, route, attacker)


@pytest.mark.parametrize("route", ROUTES)
async def test_no_length_is_believed(
    tmp_path: Path, route: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every two and every four bytes as great as can be: an answer to each, and soon."""

    def attacker(target: Target) -> None:
        with wire_to(target.side) as wire:
            for body in ones_everywhere(target.seed):
                status, content = wire.post(target, body)
                assert status < 500, (body, content)

    with calm(capfd):
        await attack(tmp_path, route, attacker)


async def test_strange_paths_tokens_and_types_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in a path or a header, the answer is a 4xx and nothing is stored."""
    printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
    header = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)
    resources = ("hpke_config", "reports", "aggregation_jobs", "aggregate_shares", "nothing")

    def attacker(target: Target) -> None:
        @PROFILE
        @given(
            st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH", "BREW"]),
            st.sampled_from(resources),
            st.tuples(
                st.one_of(st.just(target.path.split("/")[2]), printable),
                printable,
                st.one_of(st.just(target.token), header),
                st.one_of(st.just(target.content.value), header),
            ),
        )
        def probe(method: str, resource: str, texts: tuple[str, str, str, str]) -> None:
            task, job, token, content = texts
            path = f"/tasks/{task}/{resource}/{job}".replace("#", "%23")
            headers = {"Content-Type": content, "Authorization": f"Bearer {token}"}
            status, _ = wire.ask(method, path, headers)
            assert 400 <= status < 500

        before = everything(target.side)
        with wire_to(target.side) as wire:
            probe()
        assert everything(target.side) == before

    with calm(capfd):
        await attack(tmp_path, "aggregation_jobs", attacker)
