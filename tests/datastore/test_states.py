"""Every state that SQL names as a literal is one that the enum of its table has."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, pairwise
from pathlib import Path

import pytest

import dapd
from dapd.datastore import leases
from dapd.protocol.keys import KeyState
from dapd.protocol.states import (
    ChunkState,
    CollectionState,
    HelperJobState,
    LeaderJobState,
    RangeState,
)
from dapd.protocol.task import TaskState

ENUMS: dict[str, tuple[type[StrEnum], ...]] = {
    "tasks": (TaskState,),
    "hpke_keypairs": (KeyState,),
    "report_chunks": (ChunkState,),
    "aggregation_jobs": (LeaderJobState, HelperJobState),
    "collection_jobs": (CollectionState,),
    "collected": (RangeState,),
}
"""The tables with a column ``state``, and what may stand in it."""
STATES = {table: {str(each) for each in chain(*enums)} for table, enums in ENUMS.items()}
SCHEMA = Path(dapd.__path__[0]) / "datastore" / "schema"

_TOKEN = re.compile(
    r"--[^\n]*|(?P<blob>[xX]'[0-9a-fA-F]*')|(?P<text>'(?:[^']|'')*')"
    r"|(?P<word>:?[A-Za-z_][\w.]*)|(?P<mark><>|!=|==|\|\||\S)"
)
_VERB = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER)\b")
_BEFORE_TABLE = ("FROM", "JOIN", "UPDATE", "INTO", "TABLE")
_COMPOUND = ("UNION", "EXCEPT", "INTERSECT")

Token = str | list["Token"]
"""A word, a mark, a literal with its quotes; or what stands in parentheses."""


@dataclass
class Found:
    """Literals of one statement: those of a table's state, and all the others."""

    states: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def wrong(self) -> list[tuple[str, str]]:
        """Those that their table lacks, or that this reader could not give to a table."""
        known = set().union(*STATES.values())
        wrong = [(table, text) for table, text in self.states if text not in STATES[table]]
        return wrong + [("?", text) for text in self.others if text in known]


def read(sql: str) -> Found:
    """All literals of one statement."""
    tokens = _nested(iter(m.group() for m in _TOKEN.finditer(sql) if m.lastgroup))
    reader = _Reader(_parameters(tokens))
    reader.level(tokens, [])
    found = reader.found
    left = [text[1:-1] for text in _flat(tokens) if text.startswith("'")]
    for _, text in found.states:
        left.remove(text)
    found.others = left
    return found


def _nested(tokens: Iterator[str]) -> list[Token]:
    level: list[Token] = []
    for token in tokens:
        if token == ")":
            break
        level.append(_nested(tokens) if token == "(" else token)
    return level


def _flat(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if isinstance(token, str):
            yield token
        else:
            yield from _flat(token)


def _parameters(tokens: Sequence[Token]) -> set[str]:
    """The parameters that are compared with a state, or assigned to one."""
    flat = list(_flat(tokens))
    return {
        flat[at + 2]
        for at in range(len(flat) - 2)
        if _is_state(flat[at]) and flat[at + 1] in ("=", "<>") and flat[at + 2].startswith(":")
    }


def _is_state(token: Token) -> bool:
    return isinstance(token, str) and token.rpartition(".")[2] == "state" and token[0] != ":"


Scope = Mapping[str, str]
"""Tables by their aliases."""


@dataclass
class _Reader:
    """Walks through one statement; a scope is what one SELECT or the like names after FROM."""

    parameters: set[str]
    found: Found = field(default_factory=Found)

    def level(self, tokens: Sequence[Token], outer: list[Scope]) -> None:
        """What stands between two parentheses; the parts of a UNION have a scope each."""
        start = 0
        for at, token in enumerate([*tokens, "UNION"]):
            if token in _COMPOUND:
                self._part(tokens[start:at], [_scope(tokens[start:at]), *outer])
                start = at + 1

    def _part(self, tokens: Sequence[Token], scopes: list[Scope]) -> None:
        for at, token in enumerate(tokens):
            if isinstance(token, list):
                self.level(token, scopes)
            if token == "INTO":
                self._insert(tokens[at + 1 :], scopes)
            table = self._table(token, scopes)
            if table is not None:
                after = at > 0 and tokens[at - 1] == "CASE"
                texts = (
                    _branches(tokens[at + 1 :], "WHEN") if after else _compared(tokens[at + 1 :])
                )
                self.found.states += [(table, text) for text in texts]

    def _table(self, token: Token, scopes: list[Scope]) -> str | None:
        """Whose state this is, if it is one: a column, a parameter, or what a subquery selects."""
        if isinstance(token, list):
            if token[:1] != ["SELECT"]:
                return None
            selected = token[: token.index("FROM")] if "FROM" in token else token
            columns = [each for each in _flat(selected) if _is_state(each)]
            whole = "CASE" in selected or len(selected) == 2
            return self._table(columns[0], [_scope(token), *scopes]) if columns and whole else None
        if token in self.parameters:
            return next(chain.from_iterable(each.values() for each in scopes if each), None)
        if not _is_state(token):
            return None
        alias = token.rpartition(".")[0]
        for scope in scopes:
            if alias in scope:
                return scope[alias]
            if not alias and scope:
                (table,) = set(scope.values())
                return table
        return None

    def _insert(self, tokens: Sequence[Token], scopes: list[Scope]) -> None:
        table, columns, values, *rows = tokens
        if table not in ENUMS or not isinstance(columns, list) or "state" not in columns:
            return
        assert values == "VALUES", f"how does the state of {table} come in?"
        at = [each for each in columns if each != ","].index("state")
        assert isinstance(rows[0], list)
        value = _split(rows[0])[at]
        if len(value) == 1 and isinstance(value[0], str) and value[0].startswith("'"):
            self.found.states.append((str(table), value[0][1:-1]))


def _scope(tokens: Sequence[Token]) -> Scope:
    """The tables with a state that this level names, by their aliases."""
    scope: dict[str, str] = {}
    is_index = "INDEX" in tokens
    for at, token in enumerate(tokens[:-1]):
        table = tokens[at + 1]
        named = token in _BEFORE_TABLE or (is_index and token == "ON")
        if named and isinstance(table, str) and table in ENUMS:
            has_alias = tokens[at + 2 : at + 3] == ["AS"]
            alias = tokens[at + 3] if has_alias else table
            assert isinstance(alias, str)
            scope[alias] = table
    return scope


def _compared(tokens: Sequence[Token]) -> list[str]:
    """The literals that a state, which stands before these tokens, is compared with, or gets."""
    match [token for token in tokens if token != "NOT"]:
        case ["TEXT", *definition]:
            return _after("DEFAULT", _split(definition)[0])
        case ["IN", list(listed), *_]:
            return [text[1:-1] for text in _flat(listed) if text.startswith("'")]
        case ["=" | "<>" | "!=" | "IS", "CASE", *branches]:
            return _branches(branches, "THEN", "ELSE")
        case ["=" | "<>" | "!=" | "IS", str(text), *_] if text.startswith("'"):
            return [text[1:-1]]
        case _:
            return []


def _branches(tokens: Sequence[Token], *keywords: str) -> list[str]:
    """The literals that stand right after one of the keywords of a CASE, which has begun before."""
    own: list[Token] = []
    depth = 1
    for token in tokens:
        depth += (token == "CASE") - (token == "END")
        if depth == 0:
            break
        own += [token] if depth == 1 else []
    return [text for keyword in keywords for text in _after(keyword, own)]


def _after(keyword: str, tokens: Sequence[Token]) -> list[str]:
    return [
        text[1:-1]
        for token, text in pairwise(tokens)
        if token == keyword and isinstance(text, str) and text.startswith("'")
    ]


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    """By the commas of this level."""
    parts: list[list[Token]] = [[]]
    for token in tokens:
        if token == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def constants() -> Iterator[str]:
    """Every statement in an attribute of a module; those of leases for both kinds of job."""
    for module in pkgutil.walk_packages(dapd.__path__, "dapd."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                yield from _statements(value)


def _statements(value: object) -> Iterator[str]:
    if isinstance(value, str):
        if not _VERB.match(value):
            return
        if "{table}" not in value:
            yield value
            return
        for kind in leases._TABLES:
            for which in ("computing", "exchanging"):
                yield leases._sql(value.replace("{blocked}", "1, 2"), kind, which)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _statements(each)
    elif isinstance(value, dict):
        yield from _statements(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (each.name for each in dataclasses.fields(value))
        yield from _statements([getattr(value, name) for name in names])


def schema() -> Iterator[str]:
    """The statements of the schema files."""
    for path in sorted(SCHEMA.glob("*.sql")):
        yield from filter(str.strip, re.split(r";\s*\n", path.read_text()))


def test_every_state_in_sql_is_one_of_its_table() -> None:
    """A literal that no row ever has would silently find nothing. Each that there is is named."""
    statements = {*constants(), *schema()}
    found = {sql: read(sql) for sql in statements}
    assert {sql: each.wrong() for sql, each in found.items() if each.wrong()} == {}
    named = {state for each in found.values() for state in each.states}
    assert named == {(table, state) for table in STATES for state in STATES[table]}


def test_the_schema_checks_what_the_enums_have() -> None:
    """A state that the enum gets is one that the column takes."""
    checked = {}
    for sql in schema():
        if match := re.search(r"CREATE TABLE (\w+).*state IN", sql, re.DOTALL):
            checked[match[1]] = {text for _, text in read(sql).states}
    assert checked == {table: STATES[table] for table in checked}
    assert set(checked) >= {"tasks", "hpke_keypairs", "report_chunks", "collected"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM report_chunks WHERE state = 'stored'",
        "SELECT 1 FROM collection_jobs WHERE n = 1 AND state <> 'closed'",
        "SELECT 1 FROM aggregation_jobs WHERE state NOT IN ('finished', 'failed')",
        "SELECT 1 FROM report_chunks AS c WHERE (SELECT c.state = 'received' FROM tasks)",
        "SELECT 1 FROM chunk_rows WHERE 1 IN (SELECT n FROM report_chunks WHERE state = 'lost')",
        "SELECT (SELECT CASE WHEN hi > 1 THEN state END FROM collected) IS 'decided' FROM tasks",
        "SELECT 1 FROM collected UNION ALL SELECT 1 FROM collection_jobs WHERE state = 'closed'",
        "SELECT CASE state WHEN 'waiting' THEN 1 WHEN 'stored' THEN 2 END FROM report_chunks",
        "UPDATE collection_jobs SET state = 'expired' WHERE collection_pk = 1",
        "UPDATE collection_jobs SET state = CASE WHEN n THEN 'frozen' ELSE 'decided' END",
        "UPDATE collection_jobs SET state = :new, n = CASE WHEN :new = 'decided' THEN 1 END",
        "INSERT INTO report_chunks (n, state) VALUES (:n, 'frozen') RETURNING chunk_pk",
        "CREATE INDEX i ON report_chunks (n) WHERE state = 'stored'",
        "CREATE TABLE collected (n, state TEXT DEFAULT 'open' CHECK (state IN ('closed')))",
        "CREATE TABLE collected (n, state TEXT NOT NULL CHECK (state IN ('closed', 'open')))",
        "DELETE FROM tasks WHERE lower(state) = 'purged'",
    ],
)
def test_a_wrong_state_is_found(sql: str) -> None:
    """Wherever it may stand; what can't be read is refused too."""
    assert read(sql).wrong()


def test_what_is_no_state_is_let_be() -> None:
    """Other columns may have the same words."""
    found = read("SELECT 'lost' AS x FROM tasks WHERE role = 'leader' AND state = 'active'")
    assert (found.states, found.others) == ([("tasks", "active")], ["lost", "leader"])
    assert found.wrong() == [("?", "lost")]
