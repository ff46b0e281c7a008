"""Every page of the site in a real browser, in a desktop window and on a phone."""

import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests import browsing

ROOT = Path(__file__).parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings")
PAGES = [re.sub(r"\.md$", ".html", page) for page in re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(browsing.missing()), reason=browsing.missing()),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason="mkdocs is not installed; run make test-browser"
    ),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a line for each."""

    def log_message(self, format, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site that was built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as opened:
        yield opened


@pytest.mark.parametrize("page", [*PAGES, "404.html"])
def test_a_page_is_right_in_every_window_and_its_links_lead_somewhere(site, address, browser, page):
    for width in browsing.SIZES:
        with browsing.opened(browser, f"{address}/{page}", width) as (shown, wrong):
            assert browsing.faults(shown) == {}
            assert wrong == []
            links = shown.evaluate(browsing.LINKS)
    assert [link for link in links if link.startswith(address) and not leads_somewhere(site, link)] == []


def leads_somewhere(site, link):
    """Whether a link's file is in the site and, if it names a place in a page, the page has it."""
    parts = urlsplit(link)
    file = site / unquote(parts.path).lstrip("/")
    file = file / "index.html" if file.is_dir() else file
    if not file.is_file():
        return False
    return not parts.fragment or re.search(rf'\s(?:id|name)="?{re.escape(unquote(parts.fragment))}["\s>]', file.read_text()) is not None
