"""How the page's events run."""

import asyncio
import re
import sys
from pathlib import Path

import gradio as gr

from granite_demo.access import Access
from granite_demo.bench.suites.visitors import ask_page
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.ui.app import build_ui
from tests.fakes import FakeBackend
from tests.ui.gradio_patches.contract import differs

BUNDLE = "templates/frontend/assets/Blocks-*.js"


def test_a_listener_that_runs_one_more_time_follows_a_step_of_its_own() -> None:
    events = build_ui(FakeBackend(), FakeBackend(), Access()).config["dependencies"]
    latest = [event for event in events if event["backend_fn"] and event["trigger_mode"] == "always_last"]
    assert len(latest) > 5
    # Two listeners of one change would start each other without end.
    assert {kind for event in latest for _, kind in event["targets"]} == {"then"}
    assert len({event["trigger_after"] for event in latest}) == len(latest)


def test_no_component_gets_the_progress_of_an_event() -> None:
    events = build_ui(FakeBackend(), FakeBackend(), Access()).config["dependencies"]
    ours = [event for event in events if event["outputs"] and event["api_name"] != "load_example"]  # gr.Examples' own
    assert len(ours) > 50
    # Progress costs the browser a search of the page for each output of any event so far.
    assert [event["api_name"] for event in ours if event["show_progress_on"] != []] == []


async def test_more_visitors_are_answered_at_once_than_gradio_has_places_for() -> None:
    backend = FakeBackend()
    backend.allowed = 0
    with running(create_app(backend), backend) as url:
        asking = asyncio.create_task(ask_page(url, 3, ["Hi"] * 45))
        async with asyncio.timeout(60):
            while backend.running < 45:
                await asyncio.sleep(0.05)
        backend.allowed = sys.maxsize
        assert [answer.tokens for answer in (await asking).answers] == [3] * 45


def bundled() -> str:
    """Gradio's script for the events of a page, as the browser gets it."""
    [path] = Path(gr.__file__).parent.glob(BUNDLE)
    return path.read_text(encoding="utf-8")


def test_contract_a_listener_that_waited_starts_all_listeners_of_its_change() -> None:
    # dispatch(event) runs all listeners of a change, and calls itself with that change for one that waited.
    again = r"this\.queue\.has\((\w)\.id\)&&\(this\.queue\.delete\(\1\.id\),this\.dispatch\((\w)\)\)"
    found = re.search(again, bundled())
    what = "an always_last listener that waited dispatches its whole change again"
    assert found, differs(what, f"{BUNDLE} (dispatch)", "events.py (follow)")
    assert f"async dispatch({found[2]})" in bundled(), differs(what, BUNDLE, "events.py (follow)")


def test_contract_progress_goes_to_all_outputs_unless_a_list_is_given() -> None:
    what = "progress goes to show_progress_on, also if it is empty, or else to all outputs"
    found = re.search(r"progress_targets\(\)\{return this\.show_progress_on\|\|this\.outputs", bundled())
    assert found, differs(what, BUNDLE, "events.py (QUIET)")
    what = "each step of an event updates the progress of all components that have one"
    found = re.search(r"Object\.entries\(this\.loading_stati\.current\)\.map\(", bundled())
    assert found, differs(what, f"{BUNDLE} (update_loading_stati_state)", "events.py (QUIET)")
