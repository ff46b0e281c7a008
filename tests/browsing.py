"""A page in a real browser: what it shows wrongly, and what it asks the network for."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Debian's name of the browser, and others'.
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: A desktop window and a phone, in CSS pixels.
SIZES = {1280: 900, 390: 844}
#: Chromium asks nobody for anything of its own.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
)
#: What is cut off: an element outside the window, or a text larger than its box, unless a box around it scrolls on its own.
CUT_OFF = """() => {
  const main = document.querySelector('article') || document.querySelector('main');
  const scrolls = each => /auto|scroll/.test(getComputedStyle(each).overflowX);
  const inBox = each => { for (let up = each; up && up !== main; up = up.parentElement) if (scrolls(up)) return true; return false; };
  const said = each => `${each.tagName.toLowerCase()} ${(each.getAttribute('alt') || each.textContent || each.src).trim().slice(0, 60)}`;
  const found = [];
  for (const each of main.querySelectorAll('*')) {
    const box = each.getBoundingClientRect();
    if (!each.checkVisibility() || box.width < 2 || box.height < 2) continue;
    const boxed = each.parentElement && inBox(each.parentElement);
    if (!boxed && (box.left < -1 || box.right > innerWidth + 1)) found.push(`${said(each)}: from ${box.left} to ${box.right}`);
    const hides = /hidden|clip/.test(getComputedStyle(each).overflowX);
    if (hides && each.scrollWidth > each.clientWidth + 1) found.push(`${said(each)}: ${each.scrollWidth} in ${each.clientWidth}`);
  }
  return found;
}"""
SIDEWAYS = "() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
UNNAMED = "() => [...document.images].filter(each => !each.alt.trim()).map(each => each.src.slice(0, 80))"
UNSEEN = "() => [...document.images].filter(each => each.complete && !each.naturalWidth).map(each => each.src.slice(0, 80))"
LINKS = "() => [...document.links].map(each => each.href)"


def missing() -> str:
    """What a test in a browser lacks here; empty if nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed; run make test-browser"
    return "" if executable() else f"there is no {' or '.join(NAMES)} on PATH; install Debian's package chromium"


def executable() -> str | None:
    """Where Chromium is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, address: str, width: int) -> Iterator[tuple[Any, list[str]]]:
    """A page in a window of that width, and what goes wrong while it is open: errors, and requests that leave it."""
    home, wrong = address.rpartition("/")[0] if address.startswith("file:") else "/".join(address.split("/")[:3]), []
    page = browser.new_page(viewport={"width": width, "height": SIZES[width]})
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((home, "data:", "blob:")) else wrong.append(f"asks for {request.url}")
    )
    page.on("response", lambda answer: wrong.append(f"{answer.status} for {answer.url}") if answer.status >= 400 else None)
    try:
        page.goto(address, wait_until="load")
        yield page, wrong
    finally:
        page.close()


def faults(page: Any) -> dict[str, Any]:
    """What a page shows wrongly; nothing of each on a good page."""
    page.evaluate("() => document.querySelectorAll('details').forEach(each => each.open = true)")
    page.evaluate("() => Promise.all([...document.images].map(each => (each.loading = 'eager', each.decode().catch(() => 0))))")
    found = {"cut off": CUT_OFF, "sideways": SIDEWAYS, "without an alternative text": UNNAMED, "not shown": UNSEEN}
    return {name: wrong for name, script in found.items() if (wrong := page.evaluate(script))}
