"""Checks across keys: values that don't go together."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dapd.config import Config, parse_token
from dapd.config.minimal import METRICS_LISTEN

_HOST = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
"""A host name or address as in a Host header, in lower case and without a port."""


def contradictions(config: Config) -> list[str]:
    """Return a message for each contradiction: the key, what is wrong, and what to change."""
    found = [*_listening(config), *_admin_contradictions(config)]
    for low, high in (("min_job_size", "max_job_size"), ("retry_min", "retry_max")):
        if getattr(config.leader, low) > getattr(config.leader, high):
            found.append(f"leader.{low}: is above leader.{high}; lower it, or raise that one")
    if config.keys.pending >= config.keys.active:
        found.append("keys.pending: is not below keys.active; lower it, or raise that one")
    if len(set(config.datastore.sealing_keys)) < len(config.datastore.sealing_keys):
        found.append("datastore.sealing_keys: lists a file twice; list it once")
    return found


def _listening(config: Config) -> Iterator[str]:
    for table, section in (("server", config.server), ("admin", config.admin)):
        try:
            _ = section.address
        except ValueError:
            yield (
                f'{table}.listen: "{section.listen}" is not an address; '
                'write "host:port", such as "127.0.0.1:8080" or "[::]:8080"'
            )
        if (section.tls_certificate is None) != (section.tls_key is None):
            yield f"{table}.tls_certificate: goes with {table}.tls_key; set both or none"


def _admin_contradictions(config: Config) -> Iterator[str]:
    admin = config.admin
    for each in admin.tokens:
        try:
            parse_token(each)
        except ValueError:
            yield (
                "admin.tokens: an entry is not a scope and a hash; use the line that `dapd admin "
                "token` prints"
            )
    for name in admin.hosts:
        if not _HOST.fullmatch(name):
            yield (
                f'admin.hosts: "{name}" is not a host name; write it in lower case, without '
                "scheme, port and path"
            )
    try:
        remote = admin.is_remote
    except ValueError:
        return  # _listening reports it
    if admin.listen == config.server.listen and not admin.listen.endswith(":0"):
        yield "admin.listen: is the same as server.listen; choose another port"
    for key in ("tls_certificate", "hosts", "tokens"):
        is_set = bool(getattr(admin, key))
        if remote and not is_set:
            yield (
                f"admin.{key}: is needed for a listener beyond loopback; set it, or set "
                f'admin.listen to "{METRICS_LISTEN}"'
            )
        elif is_set and not remote and key != "hosts":
            yield (
                f"admin.{key}: is only for a listener beyond loopback; remove it, or set "
                "admin.listen to an address beyond loopback"
            )
