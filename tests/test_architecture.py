"""The picture of the layers in docs/architecture.md is the contract that `make lint` checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def drawn() -> list[str]:
    """The layers as the document draws them: what is left of the descriptions."""
    text = (ROOT / "docs/architecture.md").read_text()
    picture = text.partition("## Layers")[2].split("```")[1]
    return [line.partition("  ")[0] for line in picture.strip().splitlines() if line[0] != " "]


def test_the_layers_are_drawn_as_they_are() -> None:
    """A newcomer reads the picture, import-linter the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(each["layers"] for each in contracts["contracts"] if each["type"] == "layers")
    assert drawn() == layers


def test_every_module_that_a_request_passes_exists() -> None:
    """Each path names modules below ``dapd/``, with the functions that they pass through."""
    text = (ROOT / "docs/architecture.md").read_text()
    table = text.partition("## Where a request goes")[2].partition("\n## ")[0]
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+)((?:\.[a-z_]+)?)`", table)
    assert len(named) > 20
    for module, function in named:
        source = ROOT / "dapd" / f"{module}.py"
        assert source.is_file(), module
        assert f"def {function[1:]}(" in source.read_text() or not function, (module, function)
