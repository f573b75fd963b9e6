"""The web page in a real browser, against a real server."""

import shutil

import pytest

from serving import QUESTION, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def page(browser, server):
    context = browser.new_context()
    opened = context.new_page()
    opened.troubles = []
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and opened.troubles.append(message.text))
    opened.goto(server.address)
    yield opened
    assert not opened.troubles
    context.close()


def ask(page, question=QUESTION):
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")
    page.locator(".turn.assistant .price").last.wait_for()


def test_a_question_is_answered_and_is_there_after_a_reload(page):
    ask(page)
    answer = page.locator(".turn.assistant").inner_text()
    assert "tokens read" in answer
    page.reload()
    assert page.locator(".turn.assistant").inner_text() == answer
    assert page.locator("#conversations").get_by_text(QUESTION).is_visible()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
