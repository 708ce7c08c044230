"""The whole product: the sample model answers in a real browser."""

import threading

import pytest
from playwright.sync_api import Browser, expect

from granite_demo.backends import LocalBackend
from granite_demo.engine.create import create_engine
from granite_demo.loading import LoadedModel
from granite_demo.manager import ModelManager, ReadyModel
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.status import LoadOptions, Report
from tests.browser.test_chat import answers, send

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_the_sample_answers_in_the_browser(sample: LoadedModel, chromium: Browser) -> None:
    def load(options: LoadOptions, report: Report, cancelled: threading.Event) -> ReadyModel:
        return ReadyModel(sample, create_engine(sample))

    backend = LocalBackend(ModelManager(load), LoadOptions())
    with running(create_app(backend), backend) as url:
        page = chromium.new_page()
        page.goto(url)
        expect(page.locator("#model-status")).to_contain_text("SmolLM2 135M sample (not an IBM model)", timeout=20_000)
        send(page, "What is the capital of France?")
        expect(answers(page)).to_contain_text("Paris", timeout=20_000)
        expect(answers(page)).to_contain_text("finished (stop)", timeout=20_000)
        page.get_by_role("tab", name="Settings").click()
        expect(page.locator("#facts")).to_contain_text("SmolLM2-135M-Instruct in the Granite architecture")
        expect(page.locator("#facts")).to_contain_text("float32")
        page.close()
