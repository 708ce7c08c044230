"""Generated Markdown in a browser: nothing of it becomes markup, loads anything or leaves its message."""

import random

import pytest
from playwright.sync_api import Page, Request, Response, expect

from granite_demo.types.events import Finish, TextDelta, Timings, Usage
from tests.browser.conftest import OpenPage
from tests.fakes import FakeBackend

pytestmark = pytest.mark.browser

MARKUP = (
    '<div class="canary" style="position:fixed;inset:0">over all</div>',
    '<form class="canary" action="/logout"><input class="canary"><button>Log in</button></form>',
    '<a class="canary" id="canary" href="http://192.0.2.1/">here</a>',
    '<img class="canary" src="/logout">',
    '<style class="canary">* { display: none }</style>',
    '<svg class="canary" onload="window.pwned=1"></svg>',
    "<p\nclass=canary>",
    "![canary](/logout)",
    "![canary][ref]",
    "[![canary](/logout)](/logout)",
)
AROUND = (
    "{}",
    "\\`{}\\`",
    "`{}`",
    "``{}`",
    "` {}",
    "*{}*",
    "**{}",
    "[{}](/a)",
    "[a]({})",
    "[a](/a '{}')",
    "> {}",
    "> > {}",
    "- {}",
    "1. {}",
    "- a\n\n      {}",
    "    {}",
    "\t{}",
    "# {}",
    "| a | {} |\n|---|---|\n| {} | `{}` |",
    "```\n{}\n```",
    "```html\n{}",
    "    ```\n    {}\n    ```",
    "\t```\n{}\n\t```",
    "> ```\n{}\n> ```",
    "> ```\n> {}\n\n{}",
    "- ```\n  {}\n{}",
    "~~~\n{}\n~~~~ x",
    "$${}$$",
    "\\({}\\)",
    "\\[{}",
    "$a {} b$",
    "$$\n\n```\n$${}\n```",
    "<!-- {} -->",
    "<https://a.b/{}>",
    "&lt;{}",
    "a\u2028{}",
    "a\x0b```\x0b{}",
    "a\r{}",
    "a\n---\n{}",
    "[ref]: /logout\n{}",
    "[^1]: {}",
    '```mermaid\ngraph TD; A["{}"]\n```',
    "<b{}",
    "<{}",
    "<\u2060{}",
    "{}\\",
)
MARKED_JS = """() => [...document.querySelectorAll("#chatbot .message")].some((message) => {
  const copy = message.cloneNode(true);
  copy.querySelectorAll(".mermaid, svg").forEach((diagram) => diagram.remove());
  return copy.textContent.includes("\\u2060");
})"""
"""Whether an invisible mark is left in a message, outside of diagrams."""
ICON = "/favicon.ico"
DATA = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
JOINS = ("\n\n", "\n", " ", "", "\n\n\n", "\n\t", "\n> ", "\n- ")


def answer(chance: random.Random) -> str:
    """Return Markdown with markup in many places."""
    parts = [chance.choice(AROUND).replace("{}", chance.choice(MARKUP)) for _ in range(25)]
    return "".join(part + chance.choice(JOINS) for part in parts)


def check(page: Page, fake: FakeBackend, text: str) -> None:
    """Show ``text`` as an answer, and check what the browser makes of it."""
    fake.script = [TextDelta(text, 1), Finish("stop", Usage(1, 1), Timings(0.1, 0.2))]
    before = page.locator("#chatbot .bot .note").count()
    page.locator("#message textarea").fill("Hi")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#chatbot .bot .note")).to_have_count(before + 1)
    expect(page.locator("#chatbot .bot .note").last).to_contain_text("finished (stop)")
    page.wait_for_timeout(300)
    live = page.locator(
        "#chatbot :is(.canary, #canary, form, input, iframe, style:not(svg style), object, embed, script[src]),"
        "#chatbot .message img"
    )
    found = live.evaluate_all("all => all.map(one => one.outerHTML.slice(0, 200))")
    assert found == [], text
    assert not page.evaluate(MARKED_JS), text


@pytest.mark.parametrize(
    "seeds", [range(4), *(pytest.param(range(at, at + 20), marks=pytest.mark.release) for at in (100, 200, 300))]
)
def test_no_markdown_becomes_markup(page: Page, fake: FakeBackend, seeds: range) -> None:
    asked: list[str] = []

    def record(request: Request) -> None:
        asked.append(request.url)

    page.on("request", record)
    for seed in seeds:
        check(page, fake, answer(random.Random(seed)))
    assert not [url for url in asked if "logout" in url or "127.0.0.1" not in url]
    assert page.evaluate("window.pwned") is None
    expect(page.locator("#message textarea")).to_be_visible()


def test_a_box_of_an_answer_stays_in_its_message(page: Page, fake: FakeBackend) -> None:
    check(page, fake, "text")
    page.locator("#chatbot .bot.message .message-content").last.evaluate(
        """message => { const box = document.createElement("div"); box.id = "overlay";
        box.style.cssText = "position:fixed;inset:0;z-index:9999;background:red"; message.append(box); }"""
    )
    box = page.locator("#overlay").bounding_box()
    message = page.locator("#chatbot .bot.message").last.bounding_box()
    assert box
    assert message
    assert box["height"] <= message["height"] + 1
    assert page.evaluate("document.elementFromPoint(innerWidth / 2, innerHeight - 5)?.id") != "overlay"


def test_what_is_shown_is_what_was_written(page: Page, fake: FakeBackend) -> None:
    check(page, fake, "vector<int> and `a<b`\n\n```html\n<p class='x'>![y](z)</p>\n```\n\n$a<b$ and ![picture](/x.png)")
    message = page.locator("#chatbot .bot").last
    expect(message).to_contain_text("vector<int> and a<b")
    expect(message.locator("pre code")).to_have_text("<p class='x'>![y](z)</p>\n")
    expect(message.locator(".katex")).to_have_count(1)
    expect(message.locator(".katex-error")).to_have_count(0)
    expect(message.get_by_role("link", name="picture")).to_be_visible()


def test_no_picture_asks_a_route_of_the_server(page: Page) -> None:
    """Should a text become a picture in spite of all, the browser sends no request for it."""
    pictures: list[str] = []

    def record(response: Response) -> None:
        if response.request.resource_type == "image" and not response.url.startswith("data:"):
            pictures.append(response.url.removeprefix(page.url.rstrip("/")))

    page.on("response", record)
    shown = page.evaluate(
        """(sources) => Promise.all(sources.map((source) => new Promise((done) => {
            const picture = new Image();
            picture.onload = () => done(true);
            picture.onerror = () => done(false);
            picture.src = source;
        })))""",
        ["/gradio_api/startup-events", "/config", "/health", "/v1/models", "http://192.0.2.1/p.png", ICON, DATA],
    )
    assert shown == [False] * 5 + [True, True]
    assert set(pictures) <= {ICON}  # the browser may have it already


WRITTEN = (
    "#include <a.h>\n# no heading\n    indented\n\tif (x) {\n1) one\n\n\n- **b** $x$ $$y$$ \\(z\\) `c`\n<b>hi</b> &amp;"
)


def test_a_question_is_shown_as_it_was_written(page: Page, fake: FakeBackend) -> None:
    fake.words = ["Fine\n\n```mermaid\ngraph TD; A--\n```\n"]
    page.locator("#message textarea").fill(WRITTEN)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#chatbot .bot .mermaid")).to_contain_text("This diagram has a syntax error.")
    expect(page.locator("#chatbot .bot .mermaid pre")).to_have_text("graph TD; A--")
    expect(page.locator("#chatbot .act.retry")).to_be_visible()
    said = page.locator("#chatbot .user .said")
    page.wait_for_timeout(500)
    assert said.inner_text() == WRITTEN
    assert said.evaluate("said => [...said.querySelectorAll('*')].every((one) => one.tagName === 'WBR')")
    selected = page.evaluate(
        "getSelection().selectAllChildren(document.querySelector('#chatbot')), String(getSelection())"
    )
    for name in ("Edit", "Retry", "Speed and tokens"):
        assert name not in selected
    assert "Fine" in selected


def test_a_list_goes_as_its_words_and_paper_is_white(open_page: OpenPage, fake: FakeBackend) -> None:
    page = open_page(viewport={"width": 1280, "height": 720}, color_scheme="dark")
    check(page, fake, "- \u05e9\u05dc\u05d5\u05dd hello\n- two\n\n1. one\n   - two\n     - three")
    lists = page.locator("#chatbot .bot :is(ul, ol)")
    assert lists.evaluate_all("all => all.map((one) => getComputedStyle(one).direction)")[:2] == ["rtl", "ltr"]
    sizes = page.locator("#chatbot .bot li").evaluate_all("all => all.map((one) => getComputedStyle(one).fontSize)")
    assert set(sizes) == {"16px"}
    page.emulate_media(media="print")
    look = page.evaluate(
        "[document.body, document.querySelector('#chatbot li')].map((one) => getComputedStyle(one))"
        ".map((style, at) => (at ? style.color : style.backgroundColor))"
    )
    assert look == ["rgb(255, 255, 255)", "rgb(22, 22, 22)"]
    for part in ("#side", "#head", "#composer", "#chatbot .acts", ".tab-wrapper"):
        expect(page.locator(part).first).to_be_hidden()
