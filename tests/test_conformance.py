"""docs/conformance.md leaves no requirement of the draft out, and what it names exists;
docs/security.md leaves none of its security considerations out.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DRAFT = ROOT.parent / "shared/spec/draft-ietf-ppm-dap-18.md"
OTHERS = "Requirements for others"
_WORD = re.compile(r"\b(?:MUST|SHOULD|SHALL|REQUIRED|RECOMMENDED)\b")
_CODE = re.compile(r"^~~~.*?^~~~$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ ", re.MULTILINE)
_REFERENCE = re.compile(r"`((?:dapd|native|tests)/[^`]*)`")


@dataclass(frozen=True)
class Row:
    """A clause: the draft's section, the quote with ``…`` where words are left out, and the rest
    of the row.
    """

    section: str
    quote: str
    cells: tuple[str, ...]


def rows() -> list[Row]:
    found = []
    section = ""
    for line in (ROOT / "docs/conformance.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(line) <= set("|-") or "clause" in cells:
            continue
        where = cells.pop(0) if section == OTHERS else section
        found.append(Row(where, cells[0], tuple(cells[1:])))
    return found


beside_the_draft = pytest.mark.skipif(
    not DRAFT.is_file(), reason="the draft's text is not beside the repository"
)
ROWS = rows()
OURS = [row for row in ROWS if len(row.cells) == 2]
REFERENCES = sorted(
    {name for row in OURS for cell in row.cells for name in _REFERENCE.findall(cell)}
)


@cache
def names_in(path: str) -> frozenset[str]:
    """The functions, classes, members and constants of a file; a member also after its class."""
    text = (ROOT / path).read_text()
    if path.endswith(".rs"):
        return frozenset(re.findall(r"\bfn (\w+)", text))
    found: set[str] = set()

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.update({node.name, prefix + node.name})
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + each.id for each in targets if isinstance(each, ast.Name))

    look(ast.parse(text).body, "")
    return frozenset(found)


@pytest.mark.parametrize("reference", REFERENCES)
def test_what_a_row_names_exists(reference: str) -> None:
    """The file, and the function, method, class or constant in it."""
    path, _, name = reference.partition("::")
    assert (ROOT / path).is_file()
    assert name in names_in(path)


def test_each_clause_is_kept_and_tested_or_says_why_not() -> None:
    """Code and a test, or "Not applicable" with the reason."""
    for row in OURS:
        kept, tested = row.cells
        if kept.startswith("Not applicable: "):
            assert not tested, row
        else:
            assert _REFERENCE.search(kept), row
            assert all(
                each.startswith(("tests/", "native/")) for each in _REFERENCE.findall(tested)
            )
            assert _REFERENCE.search(tested), row


def sections(draft: str) -> dict[str, str]:
    """The text of each section that has a requirement, without code, as one line."""
    body = _CODE.sub("", draft.partition("\n# Introduction\n")[2])
    found: dict[str, str] = {}
    for part in _HEADING.split(body)[1:]:
        heading, _, text = part.partition("\n")
        title = heading.partition(" {#")[0]
        if _WORD.search(text):
            assert title not in found, f"two sections {title!r} have requirements"
            found[title] = " ".join(text.split())
    return found


def covered(text: str, quotes: list[str]) -> list[tuple[int, int]]:
    """Where the quotes are in a section; each begins behind the one before."""
    spans = []
    at = 0
    for quote in quotes:
        for piece in quote.split(" … "):
            start = text.find(" ".join(piece.split()), at)
            assert start >= 0, f"the draft does not say {piece!r} here, or says it earlier"
            at = start + len(piece)
            spans.append((start, at))
    return spans


@beside_the_draft
def test_no_requirement_of_the_draft_is_left_out() -> None:
    """Every MUST, SHOULD and their like is in a quote of its section, which is the draft's text;
    and the document says how many there are.
    """
    found = sections(DRAFT.read_text())
    assert {row.section for row in ROWS} <= set(found)
    count = {True: 0, False: 0}
    spans: dict[str, list[tuple[int, int]]] = {title: [] for title in found}
    for (title, ours), group in groupby(ROWS, key=lambda row: (row.section, row in OURS)):
        inside = covered(found[title], [row.quote for row in group])
        spans[title] += inside
        count[ours] += sum(len(_WORD.findall(found[title][start:end])) for start, end in inside)
    for title, text in found.items():
        for word in _WORD.finditer(text):
            sentence = text[max(0, word.start() - 100) : word.end() + 60]
            assert any(lo <= word.start() < hi for lo, hi in spans[title]), f"{title}: {sentence}"
    said = re.search(
        r"these words (\d+) times. (\d+) of them", (ROOT / "docs/conformance.md").read_text()
    )
    assert said, "how many there are"
    assert tuple(map(int, said.groups())) == (count[True] + count[False], count[True])


@beside_the_draft
def test_no_item_of_the_security_considerations_is_left_out() -> None:
    """docs/security.md takes each subsection by its name, and each attack of the three lists."""
    considerations = DRAFT.read_text().split("\n# Security Considerations ")[1].split("\n# ")[0]
    stance = (ROOT / "docs/security.md").read_text()
    for heading in re.findall(r"^##+ ([^{\n]+)", considerations, re.MULTILINE):
        assert heading.strip().lower() in stance.lower(), heading
    for kind in ("verifiability", "privacy", "other properties"):
        theirs = considerations.split(f"Attacks on {kind}")[1].split("\n\n", 2)[1]
        ours = stance.split(f"### Attacks on {kind}\n")[1].split("\n#")[0]
        assert theirs.count("\n1. ") + 1 == len(re.findall(r"^\d\. ", ours, re.MULTILINE)), kind
