"""The page in an iframe of another site: shown on a Space, with its login, and nowhere else."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Frame, Page, expect

from granite_demo.server.app import create_app
from granite_demo.server.policy import SPACES, Policy
from granite_demo.server.run import running
from tests.browser.conftest import NewContext
from tests.fakes import FakeBackend

pytestmark = [pytest.mark.browser, pytest.mark.release]

LOGIN = (("ann", "secret"),)
NAME = 'input[type="text"], textarea'


@pytest.fixture(params=[SPACES, ""], ids=["space", "elsewhere"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Yield the site that can show the page, and the address of the page. Cookies of localhost can be secure."""
    backend = FakeBackend()
    policy = Policy(logins=LOGIN, framed_by=request.param)
    with running(create_app(backend, policy=policy), backend) as url:
        yield request.param, url.replace("127.0.0.1", "localhost")


def embedded(page: Page, site: str, url: str) -> Frame:
    """Open a page of ``site`` that shows ``url`` in an iframe."""
    shell = f'<!doctype html><iframe id="frame" src="{url}" width="1200" height="800"></iframe>'
    page.route(f"{site}/**", lambda route: route.fulfill(body=shell, content_type="text/html"))
    page.goto(f"{site}/spaces/me/mine")
    frame = page.locator("#frame").element_handle().content_frame()
    assert frame
    return frame


def test_h5_a_login_works_in_the_iframe_of_a_space(new_context: NewContext, server: tuple[str, str]) -> None:
    site, url = server
    page = new_context().new_page()
    frame = embedded(page, SPACES, url)
    if not site:
        expect(frame.locator(NAME)).to_have_count(0)
        assert not frame.url.startswith(url)
        return
    name, password = frame.locator(NAME).first, frame.locator('input[type="password"]')
    name.fill("ann")
    password.fill("secret")
    password.press("Enter")
    frame.locator("#message textarea").wait_for()
    cookies = page.context.cookies()
    assert {(cookie["secure"], cookie["sameSite"]) for cookie in cookies} == {(True, "None")}
    assert {cookie.get("partitionKey") for cookie in cookies} == {SPACES}
    page.reload()
    again = page.locator("#frame").element_handle().content_frame()
    assert again
    again.locator("#message textarea").wait_for()


def test_h5_no_other_site_shows_the_page_of_a_space(new_context: NewContext, server: tuple[str, str]) -> None:
    frame = embedded(new_context().new_page(), "https://evil.example", server[1])
    expect(frame.locator(NAME)).to_have_count(0)
    assert not frame.url.startswith(server[1])
