"""What the fixture ``run`` is."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str]]
"""Types a command of a group: the exit status, and all that it says."""
