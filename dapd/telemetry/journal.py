"""Print a failure for a person or the systemd journal, without importing the logging modules."""

from __future__ import annotations

import os
import sys
from typing import TextIO

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's priorities, which the journal reads from the beginning of a line (sd-daemon(3))."""


def complain(problem: object) -> None:
    """Print to standard error why this command or daemon fails; in the journal, as an error."""
    priority = f"<{PRIORITIES['error']}>" if goes_to_journal(sys.stderr) else ""
    print(f"{priority}dapd: {problem}", file=sys.stderr)  # noqa: T201 - for a person, not an event


def goes_to_journal(stream: TextIO) -> bool:
    """Return whether ``stream`` is the journal itself, not redirected since (sd-daemon(3))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
