"""What no single key can know: values that don't go together, each with what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dapd.config import Config, parse_token
from dapd.config.minimal import METRICS_LISTEN

_HOST = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
"""A name as a Host header has it, in lower case and without a port."""


def contradictions(config: Config) -> list[str]:
    """A sentence each, which begins with the key; empty if all is well."""
    found = [*_listening(config), *_admin_contradictions(config)]
    for low, high in (("min_job_size", "max_job_size"), ("retry_min", "retry_max")):
        if getattr(config.leader, low) > getattr(config.leader, high):
            found.append(f"leader.{low}: it is above leader.{high}; lower it, or raise that")
    if config.keys.pending >= config.keys.active:
        found.append("keys.pending: it is not below keys.active; lower it, or raise that")
    if len(set(config.datastore.sealing_keys)) < len(config.datastore.sealing_keys):
        found.append("datastore.sealing_keys: a file is named twice; name it once")
    return found


def _listening(config: Config) -> Iterator[str]:
    for table, section in (("server", config.server), ("admin", config.admin)):
        try:
            _ = section.address
        except ValueError:
            yield (
                f'{table}.listen: "{section.listen}" is no address; '
                'write "host:port", such as "127.0.0.1:8080" or "[::]:8080"'
            )
        if (section.tls_certificate is None) != (section.tls_key is None):
            yield f"{table}.tls_certificate: it and {table}.tls_key go together; set both or none"


def _admin_contradictions(config: Config) -> Iterator[str]:
    admin = config.admin
    for each in admin.tokens:
        try:
            parse_token(each)
        except ValueError:
            yield (
                "admin.tokens: one is no scope and hash; write the line that `dapd admin token` "
                "prints"
            )
    for name in admin.hosts:
        if not _HOST.fullmatch(name):
            yield (
                f'admin.hosts: "{name}" is no name; write one in lower case, without scheme, port '
                "and path"
            )
    try:
        remote = admin.is_remote
    except ValueError:
        return  # told
    if admin.listen == config.server.listen and not admin.listen.endswith(":0"):
        yield "admin.listen: it is server.listen; choose another port"
    for key in ("tls_certificate", "hosts", "tokens"):
        is_set = bool(getattr(admin, key))
        if remote and not is_set:
            yield (
                f"admin.{key}: a listener beyond loopback needs it; set it, or listen on "
                f"{METRICS_LISTEN}"
            )
        elif is_set and not remote and key != "hosts":
            yield (
                f"admin.{key}: only a listener beyond loopback has it; take it out, or set "
                "admin.listen to such a one"
            )
