"""The page in a real browser: it renders, fits, obeys its policy, and refreshes.

Needs Debian's ``chromium``; skipped without it.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dapd.commits.tasks import set_task_state
from dapd.messages.common import b64url_encode
from dapd.protocol.task import TaskState
from dapd.runtime.history import POINTS
from dapd.testing import Pair
from dapd.upkeep.history import take
from tests.browser import CHROMIUM, Browser, open_browser
from tests.pair_harness import TaskHarness, open_pair, until_down

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, as Debian packages it")

WITH_PAGE: dict[str, dict[str, Any]] = {
    "admin": {"listen": "127.0.0.1:0", "page": True},
    "leader": {"retry_min": 60, "retry_max": 60},
}
WIDTHS = (360, 390, 640, 900, 901, 1280)
LONG = "Wortungetüm" * 18
TOO_WIDE = """
[...document.querySelectorAll("body *")]
  .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
  .map(each => each.outerHTML.slice(0, 200))
"""
REFRESHED = """
new Promise(done => {
  new MutationObserver(done).observe(document, {childList: true, subtree: true, attributes: true});
  document.dispatchEvent(new Event("visibilitychange"));
}).then(() => 1)
"""
CONTRASTS = """
(() => {
  const light = rgb => {
    const [r, g, b] = rgb.map(each => each / 255)
      .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = color => color.match(/[0-9.]+/g).map(Number);
  const ground = each => {
    const found = numbers(getComputedStyle(each).backgroundColor);
    return found.length < 4 ? found : ground(each.parentElement);
  };
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const each = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const both = [numbers(getComputedStyle(each).color), ground(each)].map(light);
    found.push([(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), each.outerHTML]);
  }
  return found;
})()
"""
ASKED_WHEN_LOOKED_AT = """
(() => {
  const real = window.fetch;
  let asked = 0;
  window.fetch = (...what) => { asked++; return real(...what); };
  document.dispatchEvent(new Event("visibilitychange"));
  window.fetch = real;
  return asked;
})()
"""
SEEN = 'document.querySelector("main").innerText'


@asynccontextmanager
async def shown(directory: Path) -> AsyncIterator[tuple[Pair, Browser]]:
    """Serve a busy Leader's page: tasks, waiting jobs, a peer that is down, an hour of numbers."""
    async with open_pair(directory, leader=WITH_PAGE) as (pair, http):
        context = pair.leader.context
        tasks = [
            await pair.new_task(task_info=b64url_encode(info.encode()))
            for info in ("Sleep survey", LONG, "<script>alert(1)</script>")
        ]
        hands = [TaskHarness(task, http) for task in tasks]
        reports = [each.seal([1] * 3, each.id_text) for each in hands]
        await pair.helper.stop()
        for each, sealed in zip(hands, reports, strict=True):
            await each.upload(sealed)
        await until_down(context, pair.helper.url)
        await take(context)
        history = context.history
        for series in (history.accepted, history.aggregated, history.errors, history.late):
            series[:] = array("d", range(POINTS))
        for series in (history.seconds, history.unfinished, history.queued):
            series[:] = array("d", [30.0] * POINTS)
        async with open_browser(directory / "profile") as browser:
            assert pair.leader.daemon is not None
            await browser.visit(f"http://127.0.0.1:{pair.leader.daemon.admin_port}/")
            yield pair, browser


async def test_it_renders_and_fits(tmp_path: Path) -> None:
    """Nothing is wider than the window, from a narrow phone's width on, not even a very long name,
    and the browser logs no error.
    """
    async with shown(tmp_path) as (pair, browser):
        for scheme in ("light", "dark"):
            for width in WIDTHS:
                await browser.screen(width, 844, scheme)
                assert await browser.evaluate("innerWidth") == width
                assert await browser.evaluate(TOO_WIDE) == []
                assert await browser.evaluate("document.documentElement.scrollWidth") == width
                seen = tmp_path / f"{scheme}-{width}.png"  # for who wants to look
                seen.write_bytes(await browser.screenshot())
        assert await browser.evaluate("document.title") == "dapd: one thing to do"
        text: str = await browser.evaluate(SEEN)
        assert browser.complaints == []
    for part in ("Sleep survey", LONG, "<script>alert(1)</script>", pair.helper.url):
        assert part in text
    assert "The first numbers" not in text


async def test_text_has_enough_contrast(tmp_path: Path) -> None:
    """The contrast of all text is at least 4.5, light and dark (WCAG 2.2, AA)."""
    async with shown(tmp_path) as (_, browser):
        for scheme in ("light", "dark"):
            await browser.screen(1280, 900, scheme)
            found: list[Any] = await browser.evaluate(CONTRASTS)
            assert len(found) > 30
            assert [each for each in found if each[0] < 4.5] == []


async def test_what_the_policy_forbids_is_reported_and_does_not_run(tmp_path: Path) -> None:
    """An injected script and style are reported, so an empty log proves something."""
    async with shown(tmp_path) as (_, browser):
        for tag, text in (("script", "document.title = 'broken'"), ("style", "main{display:none}")):
            await browser.evaluate(
                f"document.body.append(Object.assign(document.createElement('{tag}'), "
                f'{{textContent: "{text}"}}))'
            )
        assert await browser.evaluate("document.title") == "dapd: one thing to do"
        display = "getComputedStyle(document.querySelector('main')).display"
        assert await browser.evaluate(display) == "block"
        complaints = await browser.complained(2)
        assert all("Content Security Policy" in each for each in complaints)


async def test_the_script_brings_it_up_to_date_without_a_flash(tmp_path: Path) -> None:
    """The script replaces the main part only. It keeps selected text, and says if the daemon is
    gone, with the last known state.
    """
    async with shown(tmp_path) as (pair, browser):
        await browser.evaluate("window.kept = 1")
        context = pair.leader.context
        task = context.tasks.all()[0]
        await context.run(set_task_state, task.task_id, TaskState.DISABLED)
        await context.tasks.reload()
        await browser.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        assert await browser.evaluate(ASKED_WHEN_LOOKED_AT) == 0
        await browser.evaluate("getSelection().removeAllRanges()")
        assert "disabled" not in await browser.evaluate(SEEN)
        await browser.evaluate(REFRESHED)
        assert "disabled" in await browser.evaluate(SEEN)
        assert await browser.evaluate("window.kept") == 1
        assert await browser.evaluate("document.querySelectorAll('main').length") == 1
        assert browser.complaints == []
        await pair.leader.stop()
        await browser.evaluate(REFRESHED)
        lost = await browser.evaluate("document.getElementById('lost').innerText")
        assert lost.startswith("The daemon doesn't answer")
        assert "disabled" in await browser.evaluate(SEEN)


async def test_without_scripts_the_browser_reloads_it(tmp_path: Path) -> None:
    """Everything is there, and the page tells the browser to reload it."""
    async with shown(tmp_path) as (_, browser):
        await browser.call("Emulation.setScriptExecutionDisabled", value=True)
        await browser.reload()
        await browser.call("Emulation.setScriptExecutionDisabled", value=False)
        assert "Sleep survey" in await browser.evaluate(SEEN)
        refresh = await browser.evaluate(
            "document.querySelector('meta[http-equiv=refresh]').content"
        )
        assert refresh == "30"
