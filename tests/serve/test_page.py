"""The chat page: what is sent, and what it does in a browser (headless Chromium, driven by Playwright)."""

import base64
import hashlib
import re
import shutil
from importlib.resources import files

import pytest

from onefold.serve import page
from tests.serve.conftest import wait_until

CODE = """Here is **bold** `code`, snake_case_name and a [link](https://example.org/a).

```python
def f(x):
    # note
    return "text", 1
```

1. one
   - inner
2. two

| a | b |
|---|---|
| 1 | 2 |

> quoted"""
EVIL = (
    "<img src=x onerror=alert(1)><script>alert(2)</script> [a](javascript:alert(3)) ![i](http://evil.invalid/p.png) "
    '[b](data:text/html,x) [c](https://ok.example/"onclick="alert(4)) <iframe src=//evil.invalid></iframe>\n\n'
    "```html\n<b onmouseover=alert(5)>x</b>\n```"
)


def test_the_page_is_one_document_that_may_load_nothing_else():
    html, policy = page.build()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "@import" not in html
    assert "/*style*/" not in html
    assert "/*script*/" not in html
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_the_script_never_turns_text_into_markup():
    for name in ("page.js", "settings.js", "client.js", "markdown.js"):
        source = (files("onefold.serve") / name).read_text("utf-8")
        code = re.sub(r"^\s*//.*$", "", source, flags=re.M)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", code)


def test_it_is_sent_with_its_policy(client):
    response = client().get("/")
    assert response.headers["content-security-policy"] == page.build()[1]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.text == page.build()[0]


# ---- in a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium on this machine")
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(url, …)` opens a page; at the end nothing outside its server was asked for, and nothing went wrong."""
    opened, foreign, wrong = [], [], []

    def go(url: str, path: str = "/", **options):
        context = chromium.new_context(**options)
        opened.append(context)
        tab = context.new_page()
        tab.set_default_timeout(10_000)
        tab.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(url) else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "console", lambda m: wrong.append(m.text) if m.type == "error" and "Failed to load" not in m.text else None
        )
        tab.goto(url + path)
        return tab

    yield go
    for context in opened:
        context.close()
    assert [url for url in foreign if not url.startswith("data:")] == []
    assert wrong == []


def say(tab, text: str) -> None:
    tab.fill("#input", text)
    tab.keyboard.press("Enter")


def settled(tab) -> None:
    tab.wait_for_selector("#model[data-status=ready]")
    tab.wait_for_selector("#send[aria-label=Send]")


@pytest.mark.slow
def test_a_conversation(serving, visit):
    with serving(script=lambda text: CODE if "function" in text else "Hello there.") as url:
        tab = visit(url)
        assert tab.inner_text("#model-name") == "tiny"
        assert tab.title() == "tiny · Onefold"
        assert tab.is_visible("#empty")
        assert tab.is_disabled("#send")
        say(tab, "hi")
        tab.wait_for_selector("article.assistant >> text=Hello there.")
        settled(tab)
        assert tab.is_hidden("#empty")
        assert re.search(r"\d+ tokens", tab.inner_text(".stats"))
        assert re.search(r"\d+ of 256 tokens", tab.inner_text("#used"))
        say(tab, "write a function")
        tab.wait_for_selector("blockquote >> text=quoted")
        settled(tab)
        answer = tab.locator("article.assistant").last
        for tag in ("strong", "p > code", "figure.code pre", "ol > li > ul > li", "table td", "blockquote"):
            assert answer.locator(tag).count(), tag
        assert answer.locator("em").count() == 0
        link = answer.locator("a")
        assert link.get_attribute("href") == "https://example.org/a"
        assert "noopener" in link.get_attribute("rel")
        assert answer.locator("pre").inner_text() == 'def f(x):\n    # note\n    return "text", 1'
        tab.reload()
        assert tab.locator("article").count() == 4
        tab.click("#new")
        assert tab.locator("article").count() == 0
        tab.click("text=Undo")
        assert tab.locator("article").count() == 4


@pytest.mark.slow
def test_copying_code(serving, visit):
    with serving(script=CODE) as url:
        tab = visit(url, permissions=["clipboard-read", "clipboard-write"])
        say(tab, "code")
        settled(tab)
        tab.click("figcaption button")
        tab.wait_for_selector("text=Copied")
        assert tab.evaluate("navigator.clipboard.readText()") == 'def f(x):\n    # note\n    return "text", 1'


@pytest.mark.slow
def test_hostile_answers_stay_text(serving, visit):
    with serving(script=EVIL, context=2048) as url:
        tab = visit(url)
        tab.on("dialog", lambda dialog: pytest.fail("the model ran a script"))
        say(tab, EVIL)
        settled(tab)
        thread = tab.locator("#thread")
        assert thread.locator("img, iframe, script, b[onmouseover], [onclick], [onerror]").count() == 0
        assert "<img src=x onerror=alert(1)>" in thread.inner_text()
        addresses = [a.get_attribute("href") for a in thread.locator("a").all()]
        assert addresses
        assert all(address.startswith(("http://", "https://")) for address in addresses)


@pytest.mark.slow
def test_it_streams_and_stops(serving, visit, make_queue):
    with serving(script="word " * 200, delay=0.03) as url:
        tab = visit(url)
        for stop in (lambda: tab.keyboard.press("Escape"), lambda: tab.click("#send[aria-label=Stop]")):
            say(tab, "go on")
            tab.wait_for_selector("article.assistant:last-child >> text=word word")
            assert tab.locator("#model").get_attribute("data-status") == "busy"
            assert tab.locator("article.assistant").last.get_attribute("aria-busy") == "true"
            stop()
            settled(tab)
            assert tab.locator(".stats").last.inner_text() == "stopped"
        running = "fetch('/health').then(r => r.json()).then(h => h.running)"
        wait_until(lambda: tab.evaluate(running) == 0)
        tab.locator("article.assistant").last.hover()
        tab.click("article.assistant:last-child [aria-label='Try again']")
        tab.wait_for_selector("#model[data-status=busy]")
        tab.keyboard.press("Escape")
        settled(tab)
        assert tab.locator("article").count() == 4


@pytest.mark.slow
def test_editing_a_question_takes_back_what_followed(serving, visit):
    with serving() as url:
        tab = visit(url)
        for text in ("first", "second"):
            say(tab, text)
            settled(tab)
        tab.locator("article.user").first.hover()
        tab.locator("article.user [aria-label='Edit and ask again']").first.click()
        assert tab.input_value("#input") == "first"
        assert tab.locator("article").count() == 0


@pytest.mark.slow
def test_settings_reach_the_model_and_are_kept(serving, visit, make_queue, monkeypatch):
    seen = []

    def script(text):
        seen.append(text)
        return "one two three four five six"

    with serving(script=script) as url:
        tab = visit(url)
        tab.click("#open-settings")
        tab.fill("#system", "Be brief.")
        tab.fill("#max_tokens", "3")
        tab.fill("#seed", "7")
        tab.locator("#temperature").evaluate(
            "e => { e.value = 0; e.dispatchEvent(new Event('input', {bubbles: true})) }"
        )
        assert tab.inner_text("#temperature-shown") == "0.00"
        tab.check("#theme >> text=Dark", force=True)
        tab.keyboard.press("Escape")
        wait_until(lambda: tab.evaluate("document.activeElement.id") == "input")
        say(tab, "hi")
        settled(tab)
        assert "<|system|>Be brief.<|end|>" in seen[0]
        assert "3 tokens" in tab.inner_text(".stats")
        assert "stopped at the limit" in tab.inner_text(".stats")
        tab.reload()
        assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
        tab.click("#open-settings")
        assert tab.input_value("#system") == "Be brief."
        tab.click("#defaults")
        assert tab.input_value("#max_tokens") == "512"


@pytest.mark.slow
def test_a_base_model_continues_texts(serving, visit):
    with serving(chat=False, script=" more") as url:
        tab = visit(url)
        assert "The model goes on" in tab.inner_text("#greeting")
        say(tab, "Once")
        settled(tab)
        assert tab.inner_text("article.text .said") == "Once more"
        tab.click("text=Continue")
        wait_until(lambda: tab.inner_text("article.text .said") == "Once more more")
        settled(tab)
        tab.click("#open-settings")
        assert tab.is_disabled("input[value=chat]")
        assert tab.is_hidden("#system-field")


@pytest.mark.slow
def test_a_chat_model_can_continue_texts_too_and_keeps_both_threads(serving, visit):
    with serving() as url:
        tab = visit(url)
        say(tab, "hi")
        settled(tab)
        tab.click("#open-settings")
        tab.check("#mode >> text=Continue a text", force=True)
        tab.keyboard.press("Escape")
        assert tab.locator("article").count() == 0
        say(tab, "Once")
        settled(tab)
        assert tab.locator("article.text").count() == 1
        tab.click("#open-settings")
        tab.check("#mode >> text=Chat", force=True)
        assert tab.locator("article").count() == 2


@pytest.mark.slow
def test_the_key(serving, visit):
    with serving(key="right") as url:
        tab = visit(url)
        tab.fill("#key", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("text=That key was not accepted.")
        tab.fill("#key", "right")
        tab.keyboard.press("Enter")
        say(tab, "hi")
        tab.wait_for_selector("text=Paris.")
        tab.reload()
        settled(tab)
        assert tab.is_hidden("#ask-key")
        printed = visit(url, "/#key=right")  # the address that the server prints
        settled(printed)
        assert printed.url == url + "/"


@pytest.mark.slow
def test_errors_are_shown_and_can_be_tried_again(serving, visit):
    failing = [True]

    def script(text):
        if failing[0]:
            raise RuntimeError("boom")
        return "Better now."

    with serving(script=script, context=128) as url:
        tab = visit(url)
        say(tab, "hi")
        tab.wait_for_selector(".error >> text=The model failed")
        failing[0] = False
        tab.click("text=Try again")
        tab.wait_for_selector("text=Better now.")
        settled(tab)
        say(tab, "word " * 300)
        tab.wait_for_selector(".error >> text=at most 128 fit")
        tab.click(".error >> text=New chat")
        assert tab.is_visible("#empty")
        tab.route("**/v1/chat/completions", lambda route: route.abort())
        say(tab, "anyone?")
        tab.wait_for_selector(".error >> text=The server does not answer")
        assert tab.locator("#model").get_attribute("data-status") == "away"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(serving, visit, scheme):
    wide = CODE + "\n\n" + "x" * 300 + "\n\n```\n" + "y " * 200 + "\n```"
    with serving(script=wide, context=2048) as url:
        tab = visit(url, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True, color_scheme=scheme)
        settled(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        say(tab, "z" * 200)
        settled(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.evaluate(
            "document.getElementById('scroll').scrollWidth <= document.getElementById('scroll').clientWidth"
        )
        pairs = [
            ("ink", "paper"),
            ("muted", "paper"),
            ("muted", "sunken"),
            ("accent", "surface"),
            ("on-accent", "accent"),
        ]
        pairs += [("danger", "danger-soft"), ("ink", "accent-soft")] + [
            (c, "surface") for c in ("word", "string", "number", "call")
        ]
        for text, ground in pairs:
            assert tab.evaluate(CONTRAST, [text, ground]) >= 4.5, (text, ground)  # WCAG AA


# Contrast ratio of two of the page's colours (WCAG 2.2), as the browser resolves them.
CONTRAST = """([text, ground]) => {
  const probe = document.body.appendChild(document.createElement("i"));
  const light = (name) => {
    probe.style.color = `var(--${name})`;
    const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
  probe.remove();
  return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.slow
def test_it_works_without_a_mouse_and_everything_has_a_name(serving, visit):
    with serving(script=CODE) as url:
        tab = visit(url)
        settled(tab)
        assert tab.evaluate("document.activeElement.id") == "input"
        tab.keyboard.type("one")
        tab.keyboard.press("Shift+Enter")
        tab.keyboard.type("two")
        assert tab.input_value("#input") == "one\ntwo"
        tab.keyboard.press("Enter")
        settled(tab)
        nameless = tab.evaluate(
            "[...document.querySelectorAll('button, input, textarea')].filter(e => e.checkVisibility() && "
            "!(e.ariaLabel || e.innerText || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert nameless == []
        tab.evaluate("document.activeElement.blur()")
        tab.keyboard.press("/")
        wait_until(lambda: tab.evaluate("document.activeElement.id") == "input")
        tab.keyboard.press("Control+Shift+O")
        assert tab.locator("article").count() == 0
        assert tab.get_attribute("#thread", "role") == "log"
