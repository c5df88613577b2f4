"""The container's file, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dapd.cli import root

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "packaging/Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and the rest of it, continued lines joined."""
    whole = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in whole.split("\n"))]


def all_of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_what_is_copied_is_here_and_not_ignored() -> None:
    """A file that was renamed breaks the build of an image that nobody builds here."""
    wanted = {
        source
        for rest in all_of("COPY")
        if not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    ignored = (ROOT / "packaging/Dockerfile.dockerignore").read_text().split("\n")
    assert wanted == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / source).exists() for source in wanted)


def test_the_container_runs_as_nobody_of_importance() -> None:
    """Not as root, and with no step after that as root."""
    names = [name for name, _ in instructions() if name]
    (user,) = all_of("USER")
    uid, gid = user.split(":")
    (made,) = [rest for rest in all_of("RUN") if "useradd" in rest]
    assert f"groupadd --gid {gid} dapd" in made
    assert f"useradd --uid {uid} --gid dapd " in made
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_its_commands_are_dapds() -> None:
    """What it runs, and what says that it is well."""
    (entry,) = all_of("ENTRYPOINT")
    (health,) = all_of("HEALTHCHECK")
    (arguments,) = all_of("CMD")
    assert json.loads(entry) == ["dapd"]
    assert json.loads(arguments) == ["--config", "/etc/dapd/dapd.toml"]
    program, command = json.loads(health.partition("CMD ")[2])
    assert program == "dapd"
    assert root.get_command(root.make_context("dapd", [], resilient_parsing=True), command)


def test_the_build_needs_what_the_makefile_needs() -> None:
    """One range of versions of the build tool."""
    (asked,) = set(re.findall(r'"(maturin[^"]+)"', TEXT))
    assert asked in (ROOT / "Makefile").read_text()
