"""What the documents show works: their commands and programs are run as they stand."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from dapd.cli import root
from dapd.config.minimal import minimal_config
from dapd.messages.common import HpkeConfig, b64url_decode
from dapd.process.reload import RESTART
from dapd.server.sockets import reserved_port
from dapd.taskfile import read_task_file
from dapd.taskfile.values import check_pair

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CONTEXT = click.Context(root)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`((?:docker exec dapd |sudo )?dapd [^`]+)`(?!`)")
_COMMAND = re.compile(r"^(?:docker exec dapd |sudo )?dapd ([^#|>\n]*)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def examples(document: str, *, tests: bool) -> list[pytest.ParameterSet]:
    """The Python blocks that are tests, or those that are programs."""
    return [
        pytest.param(block.text, id=f"line-{block.line}")
        for block in blocks(document)
        if block.language == "python" and tests == ("def test_" in block.text)
    ]


def shell(script: str, directory: Path) -> str:
    """What it prints, once it has succeeded."""
    run = subprocess.run(
        ["bash", "-euc", script],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def environment() -> dict[str, str]:
    """As after ``source .venv/bin/activate``."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def walk(document: str, directory: Path) -> str:
    """What its blocks print: those for a shell in one shell, each Python block as a program, on
    ports that are free. How dapd is installed is left out.
    """
    script = ["exec 2>&1", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(document):
        if block.language == "python":
            script.append(f"python - <<'END'\n{block.text}END")
        elif block.language == "sh" and not block.text.startswith(("make ", "source ", "python3 ")):
            script.append(block.text)
    text = "\n".join([*script, "wait"])
    with reserved_port() as leader, reserved_port() as helper:
        text = text.replace("8081", str(leader)).replace("8082", str(helper))
        return shell(text, directory)


def pattern(line: str) -> str:
    """What a line of shown output looks like in another run: with other numbers, ids and times."""
    escaped = re.escape(re.sub(r"\b[\w-]{43}\b|\b[0-9a-f]{64}\b", "IDENTITY", line.strip()))
    bar = re.sub("█+", "█*", escaped)
    return re.sub(r"\d+", r"\\d+", bar).replace("IDENTITY", r"[\w-]+").replace(r"\ ", r"\s*")


def test_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    said = walk("README.md", tmp_path)
    assert "Uploaded 3 reports, 0 rejected." in said
    assert "3 accepted" in said
    assert "3 3 █" in said, "the chart"
    assert "value=[0, 1, 0, 3, 0, 0, 0, 1, 0, 1], report_count=6" in said
    assert said.count('"event":"stopped"') == 2


def test_the_tutorial_runs_and_shows_what_one_sees(tmp_path: Path) -> None:
    """Each line of output that it shows comes, in that order, but for numbers, ids and times."""
    said = rest = walk("docs/tutorial.md", tmp_path)
    shown = [block.text for block in blocks("docs/tutorial.md") if block.language == "text"]
    for line in "".join(shown).splitlines():
        found = re.search(pattern(line.removesuffix("...")), rest)
        assert found, f"{line!r} is not in {rest}"
        rest = rest[found.end() :]
    assert "103 reports from" in said
    assert "report_count=30" in said


def test_the_targets_that_documents_name_exist() -> None:
    """``make demo`` and its like, wherever a document says so."""
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"(?:`|^ *)make ([a-z]+)", document.read_text(), re.MULTILINE)
    }
    assert {"demo", "test", "lint"} <= named
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named <= set(targets)


def test_the_readmes_helper_is_what_init_writes_and_starts(tmp_path: Path) -> None:
    """The smallest asynchronous Helper, under 15 lines, serves and stops in order."""
    [text] = [block.text for block in blocks("README.md") if block.language == "toml"]
    written = minimal_config("helper", "https://helper.example/")
    assert len(text.splitlines()) < 15
    assert tomllib.loads(text) == tomllib.loads(written)
    assert written.endswith(text)
    (tmp_path / "dapd.toml").write_text(text.replace(":8080", ":0"))
    (tmp_path / "state").mkdir()
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys/sealing-1.key"
    key.touch(mode=0o600)
    key.write_bytes(base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"="))
    command = [sys.executable, "-m", "dapd", "--config", "dapd.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        for line in daemon.stdout:
            if json.loads(line)["event"] == "listening":
                daemon.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0


@pytest.mark.parametrize("text", examples("docs/testing-your-client.md", tests=True))
def test_an_example_of_a_test_passes(text: str, tmp_path: Path) -> None:
    """Under pytest as a user runs it, with the plugin loaded by itself."""
    (tmp_path / "test_example.py").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b1 passed", run.stdout)


@pytest.mark.parametrize("text", examples("docs/testing-your-client.md", tests=False))
def test_an_example_of_a_program_runs(text: str, tmp_path: Path) -> None:
    """It prints what it says, or stands until Ctrl-C, while ``dapd upload`` works against it."""
    program = [sys.executable, "-c", text]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        if "sleep_forever" not in text:
            assert running.stdout.read() == "2 of 3\n"
            assert running.wait() == 0
            return
        try:
            files = [running.stdout.readline().strip() for _ in range(4)]
            assert files[-1] == "task/client.toml"
            upload = ["dapd", "upload", "--task", "task/client.toml", "40", "2"]
            subprocess.run(upload, cwd=tmp_path, env=environment(), check=True)
        finally:
            running.terminate()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_commands_of_the_task_document_make_tasks_and_keys(tmp_path: Path) -> None:
    """``dapd task new`` as shown; and openssl makes a key pair that goes into a task file."""
    new, openssl = (block.text for block in blocks("docs/tasks.md") if block.language == "")
    shell(new, tmp_path)
    assert read_task_file(tmp_path / "task/leader.toml").task_id
    private_key, config = shell(openssl, tmp_path).split()
    check_pair(HpkeConfig.decode(b64url_decode(config)), b64url_decode(private_key))


def test_the_operators_document_lists_what_needs_a_restart() -> None:
    """All of it, and nothing else."""
    text = (ROOT / "docs/operating.md").read_text()
    listed = {
        f"{table}.{key}"
        for table, keys in re.findall(r"^- `\[(\w+)\]` ((?:`\w+`(?:, )?)+)$", text, re.MULTILINE)
        for key in re.findall(r"\w+", keys)
    }
    assert listed == RESTART


def commands_in(document: Path) -> list[str]:
    """What stands behind ``dapd`` in text and in fences."""
    text = document.read_text()
    code = [found[2] for found in _FENCE.finditer(text)]
    code += [" ".join(found.split()) for found in _INLINE.findall(_FENCE.sub("", text))]
    return _COMMAND.findall("\n".join(code).replace("\\\n", " "))


def links_in(document: Path) -> list[str]:
    """Its relative links."""
    return [link for link in _LINK.findall(document.read_text()) if "://" not in link]


def test_documents_have_commands_and_links() -> None:
    """What the next two tests look at is found."""
    assert sum(len(commands_in(document)) for document in DOCUMENTS) > 100
    assert sum(len(links_in(document)) for document in DOCUMENTS) > 50


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_that_documents_name_exist(document: Path) -> None:
    """``dapd`` with the names of commands and options, in text and in fences."""
    for said in commands_in(document):
        command: click.Command = root
        for word in said.partition(" -- ")[0].split():
            if word.startswith("--"):
                known = {name for each in command.params for name in each.opts}
                assert word.partition("=")[0] in known | {"--help"}, said
            elif isinstance(command, click.Group) and (found := command.get_command(CONTEXT, word)):
                command = found
            elif isinstance(command, click.Group):
                assert not re.fullmatch(r"[a-z][a-z-]*", word), said


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file of the project."""
    for link in links_in(document):
        assert (document.parent / link).exists(), link
