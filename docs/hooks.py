"""MkDocs hooks that add the documents outside ``docs/`` to the site, and the files they link to.

Documents stay where they are, with links that work in the repository; these hooks turn each link
into one to the page that shows its target. A file that is no document gets a page that shows its
text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "config.example.toml": "configuration.md",
}
"""Files outside ``docs/``, and the pages that show them."""
SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=(?:#[^)\s]*)?\))")
_TABLE = re.compile(r"^\[(\w+)\]\n", re.MULTILINE)
_KEY = re.compile(r"((?:^# .*\n)+?)^(?:# )?(\w+ = .*)$", re.MULTILINE)
_SETTINGS = """# Every setting

The keys of the configuration file, each with its default or an example. Durations are in seconds,
sizes in bytes; relative paths start at the file's directory. `dapd init` writes the few lines that
a new Aggregator needs."""
_LEXERS = {".toml": "toml", ".py": "python", ".conf": "nginx", ".service": "ini", ".yml": "yaml"}


def on_config(config: MkDocsConfig) -> None:
    """Add each decision to the navigation, below the pages for developers."""
    assert config.nav is not None
    [developers] = config.nav[-1].values()
    decisions = sorted(path.name for path in (ROOT / "docs/adr").glob("[0-9]*.md"))
    pages = ["README.md", *decisions[1:]]  # the first is the template
    developers.append({"Decisions": [f"adr/{page}" for page in pages]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages whose sources are not in ``docs/``."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        content = settings(text) if source.endswith(".toml") else text
        files.append(File.generated(config, page, content=content))
    documents = [file for file in files if file.is_documentation_page()]
    for source in sorted({each for file in documents for each in other_files(file)}):
        files.append(File.generated(config, page_of(source), content=listing(source)))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace the repository's links by the site's."""
    directory = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = target_of(page.file, link[0])
        if not (ROOT / target).exists():
            return link[0]  # the build refuses it
        return posixpath.relpath(page_of(target), directory or ".")

    return _LINK.sub(turned, markdown)


def target_of(file: File, link: str) -> str:
    """Return a link's target as a path in the repository."""
    source = SOURCES.get(file.src_uri, f"docs/{file.src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def page_of(target: str) -> str:
    """Return the page that shows a path in the repository."""
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        inside = target.removeprefix("docs/")
        return f"{inside}/README.md" if (ROOT / target).is_dir() else inside
    return f"files/{target}.md"


def other_files(file: File) -> Iterator[str]:
    """Yield the files that a document links to and that have no page yet."""
    for link in _LINK.findall(file.content_string):
        target = target_of(file, link)
        if page_of(target).startswith("files/") and (ROOT / target).is_file():
            yield target


def listing(source: str) -> str:
    """Return a page that shows a file."""
    lexer = _LEXERS.get(Path(source).suffix, "text")
    return f"# {source}\n\n````{lexer}\n{(ROOT / source).read_text()}````\n"


def settings(example: str) -> str:
    """Return the example configuration as a page: a heading per table, a definition per key."""
    _, *tables = _TABLE.split(example)
    parts = [_SETTINGS]
    for name, text in zip(tables[::2], tables[1::2], strict=True):
        parts += [
            f"## {name}",
            *(f"`{key}`\n:   {prose(said)}" for said, key in _KEY.findall(text)),
        ]
    return "\n\n".join(parts)


def prose(comment: str) -> str:
    """Return a comment's text on one line."""
    return " ".join(line.removeprefix("# ") for line in comment.split("\n") if line)
