"""docs/promises.md names, for each invariant and rule, code and tests that there are."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES, PROMISES = (ROOT / "docs" / name for name in ("rules.md", "promises.md"))
_RULE = re.compile(r"^\| ([A-Z]\d+(?:, [A-Z]\d+)*) \|", re.MULTILINE)
_ITEM = re.compile(r"^    - `([\w./]+)::([\w.]+)`$")
_NUMBERS = re.compile(r"test((?:_[a-z]\d+)+)_")


@dataclass
class Promise:
    """What the page says of one invariant or rule: (path, name) of its code and of its tests."""

    code: list[tuple[str, str]] = field(default_factory=list)
    tests: list[tuple[str, str]] = field(default_factory=list)


def numbers() -> list[str]:
    """The numbers of all invariants and rules."""
    rows = _RULE.findall(RULES.read_text())
    return [number for row in rows for number in row.split(", ")]


def promises() -> dict[str, Promise]:
    """The page by number; a line that is none of its kinds is an error."""
    found: dict[str, Promise] = {}
    kind = None
    body = PROMISES.read_text().partition("\n## ")[2]
    for line in body.splitlines()[1:]:
        if line.startswith("### "):
            number = line.removeprefix("### ").partition(":")[0]
            assert number not in found, f"{number} is there twice"
            promise = found[number] = Promise()
        elif line in ("- Kept by", "- Tested by"):
            kind = promise.code if line == "- Kept by" else promise.tests
        elif item := _ITEM.match(line):
            assert kind is not None, line
            kind.append((item[1], item[2]))
        else:
            assert not line or line.startswith("## "), line
    return found


@cache
def names_in(path: str) -> set[str]:
    """What a source file defines at its top level, or in a class; a Rust file, anywhere."""
    text = (ROOT / path).read_text()
    if path.endswith(".rs"):
        return set(re.findall(r"\b(?:fn|struct|enum) (\w+)", text))
    found = set()
    for node in ast.parse(text).body:
        match node:
            case ast.ClassDef(name=owner, body=body):
                found |= {owner, *(f"{owner}.{name}" for each in body for name in defined(each))}
            case _:
                found |= defined(node)
    return found


def defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()


def numbered() -> dict[str, set[tuple[str, str]]]:
    """The tests beside this one, by the numbers that they carry."""
    found = defaultdict(set)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        where = str(path.relative_to(ROOT))
        for name in names_in(where):
            if carried := _NUMBERS.match(name):
                for number in carried[1].upper().split("_")[1:]:
                    found[number].add((where, name))
    return found


def test_each_invariant_and_rule_has_an_entry_and_nothing_else_has() -> None:
    """In the order of the rules."""
    assert list(promises()) == numbers()


@pytest.mark.parametrize("number", numbers())
def test_it_has_code_and_tests_that_there_are(number: str) -> None:
    """Among them each test of this directory that carries its number, and at least one of them."""
    promise = promises()[number]
    assert promise.code
    for path, name in promise.code:
        assert path.startswith(("dapd/", "native/src/")), path
        assert name in names_in(path), f"{path} has no {name}"
    for path, name in promise.tests:
        assert path.startswith("native/src/") or name.startswith("test_"), name
        assert name in names_in(path), f"{path} has no {name}"
    mine = numbered()[number]
    assert mine
    assert mine == {each for each in promise.tests if each[0].startswith("tests/rules/")}


def test_every_number_of_a_test_is_one_of_a_rule() -> None:
    """A test of a rule that was given another number is found."""
    assert set(numbered()) <= set(numbers())
