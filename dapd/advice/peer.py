"""Advice about peers that are paused, can't be reached, serve nothing, or refuse a request."""

from __future__ import annotations

from dapd.advice import Advice
from dapd.advice.thresholds import PEER_SILENT
from dapd.wording import count, duration


def paused(endpoint: str) -> Advice:
    """Advise on a peer that an operator has paused."""
    return Advice(endpoint, "is paused by an operator", f"`dapd peer resume {endpoint}`")


def failing(endpoint: str, failures: int, blocked_ms: int) -> Advice:
    """Advise on a peer whose last ``failures`` requests got no answer; dapd sends it no request
    for ``blocked_ms``.
    """
    after = count(failures, "failed request")
    when = f"again in {duration(blocked_ms)}" if blocked_ms > 0 else "next"
    what = f"can't be reached, after {after}; dapd tries it {when}"
    return Advice(endpoint, what, _probe(endpoint))


def down(endpoint: str, seconds: float | None, *, answers: bool) -> Advice | None:
    """Advise on a peer that has served nothing for long, or return ``None``.

    ``seconds`` is ``None`` while it serves. It may answer all the same, such as a proxy whose
    Aggregator is down.
    """
    if seconds is None or seconds <= PEER_SILENT.total_seconds():
        return None
    what = "has served nothing" if answers else "has been unreachable"
    return Advice(endpoint, f"{what} for {duration(int(1000 * seconds))}", _probe(endpoint))


def likely_cause(status: int | None, type: str | None) -> str:
    """Return what an operator should check after the Helper has refused a request.

    ``status`` is that of its answer, ``type`` the draft's error in it.
    """
    match status, type:
        case ((401 | 403), _):
            return "the aggregator token of this task differs from the Helper's"
        case _, "unrecognizedTask":
            return "the Helper doesn't know the task: add it there, or correct its endpoint here"
        case _, "unrecognizedAggregationJob":
            return "the Helper has lost the job's state; dapd sends the job again"
        case _, "stepMismatch" | "unsupportedExtension" | "invalidAggregationParameter":
            return "the Helper's software or task configuration doesn't match; compare both sides"
        case _, "invalidMessage":
            return (
                "the Helper can't use this job, but may have accepted it before; compare both sides"
            )
        case 404 | 405, _:
            return "helper_aggregator_endpoint leads to no DAP Helper, or a proxy hides it"
        case 413, _:
            return "the Helper or a proxy limits bodies; lower [leader] max_job_size"
        case 415, _:
            return "the Helper speaks another version of DAP"
        case _:
            return "the Helper, or a proxy in front of it, is at fault; see its logs"


def _probe(endpoint: str) -> str:
    return f"`dapd peer probe {endpoint}` says why"
