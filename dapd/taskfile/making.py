"""Make a new task: fill in the keys that were not chosen, and split it between the parties.

The files are written by ``.files``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dapd.config import Defaults
from dapd.config.loading import explain
from dapd.crypto import HpkeKeypair
from dapd.errors import UsageError
from dapd.messages.common import TASK_ID_SIZE, HpkeConfig, b64url_encode
from dapd.messages.task import TaskConfiguration
from dapd.protocol.task import MAX_INTEGER
from dapd.taskfile import values
from dapd.taskfile.files import (
    HINT,
    VERIFY_KEY_SIZE,
    Age,
    ClientTask,
    CollectorTask,
    HelperTask,
    LeaderTask,
    TaskDraft,
    TaskFiles,
    missing,
    narrowed,
)
from dapd.taskfile.values import Fault

HELPER_KEEPS_LONGER = 86_400
"""Seconds. The Helper must still accept every report that the Leader still sends; otherwise a
report that expires in between is counted by one Aggregator or by none. A day covers differing
clocks and retries.
"""
_ENDPOINTS = ("leader_aggregator_endpoint", "helper_aggregator_endpoint")
# DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM: what every party must support.
_COLLECTOR_SUITE = (0x0020, 0x0001, 0x0001)


def new_task(
    draft: TaskDraft, *, allow_insecure_http: bool = False, allow_tiny_batches: bool = False
) -> TaskFiles:
    """Make the task of ``draft``, with a new task id, verification key, tokens and Collector key
    pair where it has none. Its ``report_expiry_age`` is the Leader's, unless its ``role`` is the
    Helper. Raises ``UsageError`` that names the key.
    """
    try:
        full = _completed(_validated(draft))
        files = TaskFiles(
            leader=narrowed(full, LeaderTask),
            helper=narrowed(_for_helper(full), HelperTask),
            collector=narrowed(full, CollectorTask),
            client=narrowed(full, ClientTask),
        )
    except Fault as fault:
        raise UsageError(str(fault)) from None
    refuse_unsafe(
        files.client.configuration,
        allow_insecure_http=allow_insecure_http,
        allow_tiny_batches=allow_tiny_batches,
    )
    return files


def refuse_unsafe(
    configuration: TaskConfiguration,
    *,
    allow_insecure_http: bool = False,
    allow_tiny_batches: bool = False,
) -> None:
    """Raise ``UsageError`` for whatever needs a flag of its own that is not given (rule B7)."""
    if not allow_insecure_http:
        refuse_insecure_http(configuration)
    if not allow_tiny_batches and configuration.min_batch_size == 1:
        raise UsageError(
            "min_batch_size: a batch of one report reveals one client's measurement;"
            " raise it, or give --allow-tiny-batches"
        )


def refuse_insecure_http(
    configuration: TaskConfiguration, endpoints: Sequence[str] = _ENDPOINTS
) -> None:
    """Raise ``UsageError`` if an endpoint is ``http://`` beyond this machine (rule B7)."""
    for key in endpoints:
        url = getattr(configuration, key)
        if values.is_insecure(url):
            raise UsageError(
                f"{key}: with {url} the network can read or replace tokens, keys and results;"
                " use https://, or give --allow-insecure-http"
                " (in Python: allow_insecure_http=True)"
            )


def _validated(draft: TaskDraft) -> TaskDraft:
    """Check types and ranges: msgspec checks what it reads, but not what code constructs."""
    try:
        return msgspec.convert(msgspec.structs.asdict(draft), TaskDraft)
    except msgspec.ValidationError as error:
        raise UsageError(f"{explain(error)}; {HINT}") from None


def _completed(draft: TaskDraft) -> TaskDraft:
    if draft.vdaf is None:
        raise missing("vdaf")
    fresh: dict[str, Callable[[], str]] = {
        "task_id": _fresh_task_id,
        "task_info": lambda: b64url_encode(b"dapd"),
        "vdaf_verify_key": lambda: b64url_encode(secrets.token_bytes(VERIFY_KEY_SIZE)),
        "aggregator_auth_token": lambda: secrets.token_urlsafe(32),
        "collector_auth_token": lambda: secrets.token_urlsafe(32),
    }
    made: dict[str, Any] = {
        key: make() for key, make in fresh.items() if getattr(draft, key) is None
    }
    made["report_expiry_age"] = _age_at_leader(draft)
    made["vdaf"] = values.vdaf_table(values.vdaf_of(draft.vdaf, complete=False))
    pair = {draft.collector_hpke_config is None, draft.collector_hpke_private_key is None}
    if len(pair) == 2:
        raise Fault(
            "collector_hpke_private_key",
            "belongs together with collector_hpke_config; give both or neither",
        )
    if pair == {True}:
        keypair = HpkeKeypair.generate(secrets.randbelow(256), *_COLLECTOR_SUITE)
        made["collector_hpke_config"] = b64url_encode(HpkeConfig(*keypair.config).encode())
        made["collector_hpke_private_key"] = b64url_encode(keypair.private_key)
    return msgspec.structs.replace(draft, **made)


def _age_at_leader(draft: TaskDraft) -> Age:
    age = draft.report_expiry_age
    if age is None:
        return Defaults().report_expiry_age
    if draft.role != "helper" or not isinstance(age, int):
        return age
    if age <= HELPER_KEEPS_LONGER:
        raise Fault(
            "report_expiry_age",
            f"is {age}, but a Helper's is a day longer than its Leader's; "
            f"it must be above {HELPER_KEEPS_LONGER}",
        )
    return age - HELPER_KEEPS_LONGER


def _for_helper(draft: TaskDraft) -> TaskDraft:
    age = draft.report_expiry_age
    if not isinstance(age, int):
        return draft
    longer = min(age + HELPER_KEEPS_LONGER, MAX_INTEGER)
    return msgspec.structs.replace(draft, report_expiry_age=longer)


def _fresh_task_id() -> str:
    """Return a random id that a command can't mistake for an option."""
    while (text := b64url_encode(secrets.token_bytes(TASK_ID_SIZE))).startswith("-"):
        pass
    return text
