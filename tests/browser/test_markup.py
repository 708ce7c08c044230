"""Tests in a browser that text of a model or an error is shown and never runs."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from granite_demo.errors import EngineError
from granite_demo.types.events import Finish, ReasoningDelta, TextDelta, Timings, Usage
from granite_demo.types.model_status import ModelStatus
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

EVIL = (
    "<img src=x onerror='window.pwned=1'>",
    "<script>window.pwned=1</script>",
    "<svg onload='window.pwned=1'><script>window.pwned=1</script></svg>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror='window.pwned=1'></style></mglyph></math>",
    "<style>* { display: none !important } @import 'http://192.0.2.1/a.css';</style>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>press</a> [press](javascript:window.pwned=1) [p](data:text/html,x)",
    r"$$\href{javascript:window.pwned=1}{press} \includegraphics{http://192.0.2.1/p.png}$$",
    r"$$\htmlData{x=1}{y} \url{javascript:window.pwned=1}$$",
    "\n```mermaid\ngraph TD; A[\"<img src=x onerror='window.pwned=1'>\"]; "
    'click A href "javascript:window.pwned=1"\n```\n',
    "\n```mermaid\n%%{init: {'securityLevel': 'loose'}}%%\ngraph TD; A-->B; click A call alert()\n```\n",
    "<form action='http://192.0.2.1/'><input autofocus onfocus='window.pwned=1'></form>",
    "![p](http://192.0.2.1/p.png)",
)
TORN = "<img src=x onerror='window.pwned=1'><svg onload='window.pwned=1'>"


@pytest.fixture
def outside(page: Page) -> Iterator[list[str]]:
    """Record the other hosts that the browser contacts."""
    asked: list[str] = []
    page.on("response", lambda response: asked.append(response.url))
    yield asked
    assert page.evaluate("window.pwned") is None
    assert [url for url in asked if "127.0.0.1" not in url and not url.startswith(("data:", "blob:"))] == []
    live = "script:not([src]), [onerror], [onload], [onfocus], iframe, form, a[href^='javascript'], a[href^='data']"
    shown = page.locator("#chatbot, #model-status, #load-message, .toast-body").locator(live)
    assert shown.evaluate_all("found => found.map(one => one.outerHTML.slice(0, 200))") == []


def send(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


@pytest.mark.parametrize("thinking", [False, pytest.param(True, marks=pytest.mark.release)])
def test_t07_the_output_of_a_model_never_runs(
    page: Page,
    fake: FakeBackend,
    outside: list[str],
    thinking: bool,
) -> None:
    kind = ReasoningDelta if thinking else TextDelta
    torn = [TORN[place : place + 3] for place in range(0, len(TORN), 3)]
    texts = [*(f"{text}\n\n" for text in EVIL), *torn, "the end"]
    fake.delay = 0.01
    fake.script = [kind(text, place) for place, text in enumerate(texts, 1)]
    fake.script.append(Finish("stop", Usage(5, len(texts)), Timings(0.1, 0.2)))
    send(page, " ".join(EVIL))
    expect(page.locator("#chatbot")).to_contain_text("finished (stop)")
    page.wait_for_timeout(1000)  # formulas and diagrams are drawn later
    for link in page.locator("#chatbot .bot a").all():
        assert (link.get_attribute("href") or "#").startswith(("http://192.0.2.1", "#", "/")), link
    expect(page.locator("#message textarea")).to_be_visible()  # styles in the text have no effect


def test_t07_an_error_text_or_a_model_name_never_runs(
    page: Page,
    fake: FakeBackend,
    outside: list[str],
) -> None:
    fake.error = EngineError(" ".join(EVIL))
    send(page, "Hello")
    expect(page.locator("#chatbot .error")).to_contain_text("<svg onload=")
    fake.state = ModelStatus("two", "failed", None, " ".join(EVIL), title=EVIL[0], notice=EVIL[2])
    expect(page.locator("#model-status")).to_contain_text("onload=")
    fake.state = READY
