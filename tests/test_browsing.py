"""What finds faults of a page finds each of them."""

import pytest

from tests import browsing

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(browsing.missing()), reason=browsing.missing())]
FAULTS = {
    '<div style="width: 3000px">wide</div>': {"cut off", "sideways"},
    '<div style="width: 50px; overflow: hidden; white-space: nowrap">longer than its box</div>': {"cut off"},
    '<div style="width: 99px; overflow-x: auto"><div style="width: 3000px">scrolls in its own box</div></div>': set(),
    '<img src="data:image/png;base64,AAAA" alt="damaged">': {"not shown"},
    '<svg width="9" height="9"></svg><img src="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22/%3E">': {
        "without an alternative text"
    },
    "<p>good</p>": set(),
}


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as opened:
        yield opened


def written(folder, body):
    file = folder / "page.html"
    file.write_text(f"<!doctype html><title>x</title><main>{body}</main>")
    return f"file://{file}"


def test_each_fault_is_found(browser, tmp_path):
    for body, expected in FAULTS.items():
        with browsing.opened(browser, written(tmp_path, body), 390) as (page, _):
            assert set(browsing.faults(page)) == expected, body


def test_errors_and_requests_are_found(browser, tmp_path):
    body = '<script>console.error("said"); throw Error("thrown")</script><img src="file:///elsewhere/x.png" alt="elsewhere">'
    with browsing.opened(browser, written(tmp_path, body), 1280) as (_, wrong):
        assert {"said", "thrown", "asks for file:///elsewhere/x.png"} <= set(wrong)
