"""``dapd admin token``: what it makes opens the listener, and is kept nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dapd.config.loading import load
from dapd.crypto import token_matches
from tests.cli.typed import Run

GROUP = "admin"
REMOTE = """
[admin]
listen = "0.0.0.0:9464"
hosts = ["dapd.example"]
tls_certificate = "c"
tls_key = "k"
"""


@pytest.mark.parametrize(
    ("arguments", "scope"),
    [((), "read"), (("--scope", "read"), "read"), (("--scope", "operate"), "operate")],
)
def test_the_line_is_one_of_a_configuration_that_takes_the_token(
    run: Run, config: Path, arguments: tuple[str, ...], scope: str
) -> None:
    """As it is pasted; only its hash is in there, and looking is the default."""
    status, said = run("token", *arguments)
    assert status == 0
    made, line = re.findall(r"once: (\S+)\n|^  (tokens = .+)$", said, re.MULTILINE)
    config.write_text(config.read_text() + REMOTE + line[1] + "\n")
    [(allowed, hashed)] = load(config).admin.token_hashes
    assert allowed == scope
    assert token_matches(made[0], [hashed])
    assert len(made[0]) == 43
    assert made[0] not in config.read_text()


def test_each_token_is_another(run: Run) -> None:
    """And an unknown scope makes none."""
    assert run("token") != run("token")
    status, said = run("token", "--scope", "write")
    assert status == 2
    assert "tokens =" not in said
