"""The documents as a site: it is built where every link leads somewhere, and it needs no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dapd.config.loading import load
from dapd.process.reload import keys_of

ROOT = Path(__file__).parent.parent
SOURCES = (
    "mkdocs.yml", "docs", "packaging", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE",
    "config.example.toml",
)  # fmt: skip
pytestmark = pytest.mark.skipif(
    find_spec("material") is None, reason="mkdocs-material is not installed: pip install dapd[docs]"
)
# What a browser fetches by itself, unlike the target of <a>.
_FETCHED = {
    "audio": "src", "embed": "src", "iframe": "src", "img": "src", "link": "href", "object": "data",
    "script": "src", "source": "src", "track": "src", "video": "src",
}  # fmt: skip
_IN_CSS = re.compile(r"(?:@import\s*|url\(\s*)['\"]?((?:https?:)?//[^'\")\s]+)")


@dataclass
class Html(HTMLParser):
    """What one page links to, what it fetches, and what can be linked to in it."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if (name := _FETCHED.get(tag)) and name in given:
            self.fetched.append(given[name])
        self.fetched += _IN_CSS.findall(given.get("style", ""))


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    built = build(ROOT, directory)
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = Html()
        found[path].feed(path.read_text())
    return found


def test_every_document_is_a_page(site: Path) -> None:
    """Those in ``docs/``, those beside it, and the files that they name."""
    inside = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    named = {path.with_suffix("") for path in inside if path.name != "README.md"}
    beside = {Path("contributing"), Path("changelog"), Path("configuration"), Path("files/LICENSE")}
    shown = {path.parent.relative_to(site) for path in site.rglob("index.html")}
    assert shown >= named | beside | {Path(), Path("adr")}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    """Also those that are turned from the repository's to the site's, and down to the heading."""
    dead = []
    followed = 0
    for path, page in pages.items():
        for link in page.links if path.name != "404.html" else ():
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            followed += 1
            named = unquote(parts.path) or path.name
            target = Path(os.path.normpath(path.parent / named))
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].anchors if target in pages else set()
            if (parts.fragment and unquote(parts.fragment) not in anchors) or not target.is_file():
                dead.append((path.relative_to(site), link))
    assert followed > len(pages)
    assert not dead


def test_links_elsewhere_are_whole_urls(pages: dict[Path, Html]) -> None:
    """https, with a host, and nothing that has to be escaped; whether they answer is not asked."""
    elsewhere = {
        link for page in pages.values() for link in page.links if urlsplit(link).scheme != ""
    }
    assert elsewhere
    for link in elsewhere:
        parts = urlsplit(link)
        assert parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost"), link
        assert parts.hostname, link
        assert re.fullmatch(r"[!#$%&'()*+,\-./:;=?@\[\]_~0-9A-Za-z]+", link), link


def test_a_reader_fetches_nothing_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    """No fonts, no scripts, no counting: the pages and style sheets name only the site's files."""
    assert sum(len(page.fetched) for page in pages.values()) > 3 * len(pages)
    for path, page in pages.items():
        for fetched in page.fetched:
            parts = urlsplit(fetched)
            assert not parts.netloc, (path, fetched)
            assert parts.scheme in ("", "data"), (path, fetched)
        assert not _IN_CSS.findall(path.read_text()), path
    sheets = sorted(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not _IN_CSS.findall(sheet.read_text()), sheet


def test_the_search_is_the_sites_own(site: Path) -> None:
    """What it looks in, and what looks, are files of the site."""
    index = json.loads((site / "search/search_index.json").read_text())
    assert any("quarantined" in entry["text"] for entry in index["docs"])
    assert list(site.glob("assets/javascripts/workers/search.*.js"))


def test_every_setting_is_on_its_page(site: Path) -> None:
    """With its table, each once."""
    wanted = sorted(keys_of(load(ROOT / "config.example.toml")))
    page = (site / "configuration/index.html").read_text()
    table, shown = "", []
    for heading, key in re.findall(r'<h2 id="(\w+)"|<dt><code>(\w+) = ', page):
        table = heading or table
        shown += [f"{table}.{key}"] if key else []
    assert sorted(shown) == wanted


@pytest.mark.parametrize(
    "link", ["docs/nowhere.md", "docs/tasks.md#nowhere", "packaging/nowhere.conf"]
)
def test_a_link_that_leads_nowhere_stops_the_build(link: str, tmp_path: Path) -> None:
    """A missing document, heading or file, named in the message."""
    for source in SOURCES:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source)
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    with (tmp_path / "README.md").open("a") as readme:
        readme.write(f"\n[there]({link})\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode != 0
    assert "nowhere" in built.stdout + built.stderr
