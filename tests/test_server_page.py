"""The web page in a real browser, against a real server."""

import shutil
import time

import pytest

from serving import QUESTION, WORDS, client, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context()
    opened = context.new_page()
    opened.troubles = []
    opened.on("pageerror", lambda error: opened.troubles.append(str(error)))
    opened.on("console", lambda message: message.type in ("error", "warning") and opened.troubles.append(message.text))
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


def upload(page, name, text):
    page.locator("#files").set_input_files({"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    page.get_by_role("checkbox", name=name).wait_for()


def test_a_file_is_read_and_the_answer_leads_to_its_passages(page):
    upload(page, "book.txt", WORDS)
    assert page.get_by_role("checkbox", name="book.txt").is_checked()
    ask(page)
    sources = page.get_by_role("group", name="Passages the answer was read from").get_by_role("button")
    sources.first.wait_for()
    sources.first.click()
    document = page.get_by_role("complementary", name="Document")
    document.wait_for()
    assert document.locator("#text").inner_text().split() == WORDS.split()
    marks = document.locator("mark")
    assert marks.count() == sources.count()
    assert document.locator("mark.current").count() == 1
    assert set(marks.first.inner_text().split()) <= set(WORDS.split())
    document.get_by_role("button", name="Next passage").click()
    assert document.locator("mark.current").count() == 1
    page.keyboard.press("Escape")
    assert not document.is_visible()
    page.get_by_role("button", name="Delete book.txt").click()
    page.get_by_role("checkbox", name="book.txt").wait_for(state="detached")


def test_a_passage_far_down_is_seen_at_once(page):
    """The server's answer of what was kept is replaced by one about a passage after 300,000 characters."""
    passage = {"start": 300_000, "end": 300_010, "text": "y" * 10}
    document = {"name": "long.txt", "text": "x y " * 75_000 + "y" * 10 + " x y" * 75_000, "passages": [passage]}
    page.route("**/kept", lambda route: route.fulfill(json={"documents": [document]}))
    upload(page, "long.txt", WORDS)
    ask(page)
    page.get_by_role("group", name="Passages the answer was read from").get_by_role("button").click()
    page.locator("#text mark.current").wait_for()
    assert page.locator("#text mark.current").evaluate(
        "mark => { const at = mark.getBoundingClientRect(); return at.top > 0 && at.bottom < innerHeight; }"
    )
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete long.txt").click()
    page.get_by_role("checkbox", name="long.txt").wait_for(state="detached")


def test_pasted_text_is_a_document_and_markup_in_it_is_text(page):
    page.get_by_text("Paste text").click()
    page.get_by_label("Text", exact=True).fill(f"<b onclick=x>w1</b> {WORDS}")
    page.get_by_role("button", name="Add as a document").click()
    page.locator("#documents input").wait_for()
    ask(page)
    page.get_by_role("group", name="Passages the answer was read from").get_by_role("button").first.click()
    page.locator("#text mark").first.wait_for()
    assert page.locator("#text").inner_text().startswith("<b onclick=x>w1</b> w0")
    assert page.locator("#text b").count() == 0
    page.get_by_role("button", name="Delete <b").click()


def broken(route):
    route.fulfill(status=500, json={"error": {"message": "The model is out of breath."}})


def test_a_question_that_failed_is_told_and_can_be_asked_again(page):
    page.route("**/v1/chat/completions", broken)
    page.get_by_label("Question", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("out of breath").wait_for()
    page.get_by_role("button", name="Ask").wait_for()
    assert page.get_by_role("alert").is_visible(), "it stays until the next attempt"
    assert page.locator(".turn").count() == 0
    assert page.get_by_label("Question", exact=True).input_value() == QUESTION
    page.unroute("**/v1/chat/completions")
    ask(page)
    assert not page.get_by_role("alert").is_visible()
    page.reload()
    assert page.locator(".turn").count() == 2, "the conversation that began with a failure is kept"
    page.troubles.clear()  # the browser's own line about status 500


def test_a_later_question_that_failed_leaves_the_conversation_as_it_was(page):
    ask(page)
    before = page.locator(".turn").all_inner_texts()
    page.route("**/v1/chat/completions", broken)
    page.get_by_label("Question", exact=True).fill("w3 ?")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("out of breath").wait_for()
    page.get_by_role("button", name="Ask").wait_for()
    assert page.locator(".turn").all_inner_texts() == before
    page.troubles.clear()


def test_an_answer_is_stopped(browser, tmp_path):
    with serving(tmp_path, max_new_tokens=400) as slow:
        opened = browser.new_page()
        opened.goto(slow.address)
        opened.get_by_label("Question", exact=True).fill(QUESTION)
        opened.get_by_role("button", name="Ask").click()
        opened.get_by_role("button", name="Stop").click()
        opened.get_by_role("button", name="Ask").wait_for()
        assert opened.locator(".turn.assistant .price").count() == 0
        opened.close()


def test_where_a_key_is_needed_it_is_asked_for(browser, tmp_path):
    with serving(tmp_path, api_key=("secret",)) as locked:
        opened = browser.new_page()
        opened.goto(locked.address)
        opened.get_by_label("API key").wait_for()
        assert "key" in opened.get_by_role("alert").inner_text().lower()
        opened.get_by_label("API key").fill("secret")
        opened.get_by_label("API key").press("Enter")
        opened.locator("#model", has_text="tiny").wait_for()
        assert not opened.get_by_role("alert").is_visible()
        opened.close()


def test_it_fits_a_phone(browser, server):
    context = browser.new_context(viewport=SIZES["phone"])
    opened = context.new_page()
    opened.goto(server.address)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 320
    context.close()


LEVEL_AA = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 320, "height": 640}}


def violations(page):
    """What axe finds against WCAG 2.2, levels A and AA: the rule, where, and what it says."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page, options={"runOnly": LEVEL_AA}).response
    assert found["passes"]
    return [
        (rule["id"], node["target"], node["failureSummary"]) for rule in found["violations"] for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_use_it(browser, server, scheme, size):
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    opened = context.new_page()
    opened.goto(server.address)
    name = f"{scheme} {size}.txt"
    upload(opened, name, WORDS)
    assert violations(opened) == []
    ask(opened)
    sources = opened.get_by_role("group", name="Passages the answer was read from").get_by_role("button")
    sources.first.wait_for()
    assert violations(opened) == []
    sources.first.click()
    opened.locator("#text mark.current").wait_for()
    assert violations(opened) == []
    assert opened.locator("main").evaluate("main => main.inert") == (size == "phone"), "what is covered is out of reach"
    opened.keyboard.press("Escape")
    assert sources.first.evaluate("button => button === document.activeElement"), "back where it was opened from"
    opened.get_by_role("button", name=f"Delete {name}").click()
    opened.get_by_role("checkbox", name=name).wait_for(state="detached")
    context.close()


def test_a_refused_key_is_told_to_everybody(browser, tmp_path):
    with serving(tmp_path, api_key=("secret",)) as locked:
        opened = browser.new_page()
        opened.goto(locked.address)
        opened.get_by_role("alert").wait_for()
        assert violations(opened) == []
        opened.close()


def test_who_asks_before_the_page_knows_its_server_is_answered(browser, server):
    """The answers to the page's own requests come late."""
    opened = browser.new_page()
    opened.route("**/v1/models", lambda route: (time.sleep(0.5), route.continue_()))
    opened.goto(server.address)
    ask(opened)
    assert "tokens read" in opened.locator(".turn.assistant").inner_text()
    opened.close()


def test_a_file_that_is_given_before_the_others_are_listed_is_there_once(browser, server):
    opened = browser.new_page()
    opened.add_init_script(
        """const real = fetch;
        window.fetch = async (path, options) => {
          const answer = await real(path, options);
          if (path.startsWith("v1/files?")) await new Promise((done) => setTimeout(done, 1000));
          return answer;
        };"""
    )
    opened.goto(server.address)
    opened.locator("#files").set_input_files({"name": "early.txt", "mimeType": "text/plain", "buffer": WORDS.encode()})
    box = opened.get_by_role("checkbox", name="early.txt")
    box.first.wait_for()
    opened.wait_for_timeout(1500)
    assert box.count() == 1
    assert box.is_checked()
    opened.get_by_role("button", name="Delete early.txt").click()
    box.wait_for(state="detached")
    opened.close()


def test_nothing_comes_from_elsewhere_and_nothing_else_is_served(server):
    with client(server) as http:
        page = http.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "http" not in page.text.replace("http-equiv", "")
        assert http.get("/static/app.js").headers["content-type"].startswith("text/javascript")
        for name in ("../page.py", "..%2fpage.py", "nothing.js", ""):
            assert http.get(f"/static/{name}").status_code == 404
