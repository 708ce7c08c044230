"""What the page shows, without a page."""

from dataclasses import replace
from typing import Any

import pytest

from granite_demo.types.model_status import Chosen, MemoryUse, ModelStatus
from granite_demo.ui.html import facts_html, memory_html, note_html, status_html
from tests.fakes import SETUP

EVIL = "<script>alert(\"1\" & '2')</script>"
SAFE = "&lt;script&gt;alert(&quot;1&quot; &amp; &#x27;2&#x27;)&lt;/script&gt;"


def test_notes_are_escaped() -> None:
    assert note_html(EVIL) == f'<div class="note">{SAFE}</div>'
    assert note_html(EVIL, "error") == f'<div class="error">{SAFE}</div>'


# The model's state


def test_a_ready_model_shows_its_main_choices() -> None:
    setup = replace(SETUP, device=Chosen("cuda", "", "cuda, 2 GPUs"))
    status = ModelStatus("sample", "ready", 1.0, title="Sample", setup=setup)
    assert status_html(status) == (
        '<button type="button" class="status ready" data-sheet="picker"><b>Sample</b> '
        "<span>cuda, 2 GPUs · bfloat16 · sdpa</span></button>"
    )


def test_a_model_of_other_servers_shows_them() -> None:
    status = ModelStatus("m", "ready", title="M", servers=("vLLM at http://one", "http://two"))
    assert "<span>vLLM at http://one · http://two</span>" in status_html(status)


def test_a_busy_model_shows_its_progress_where_known() -> None:
    status = ModelStatus("sample", "downloading", 0.25, "23 of 93 MB")
    known, unknown = status_html(status), status_html(replace(status, fraction=None, detail=""))
    assert "<b>sample</b> <span>downloading 23 of 93 MB</span>" in known
    assert '<progress max="1" value="0.250" aria-label="downloading 23 of 93 MB"></progress>' in known
    assert '<span>downloading</span><progress max="1" aria-label="downloading"></progress>' in unknown


def test_a_failed_model_says_why_and_is_not_busy() -> None:
    html = status_html(ModelStatus("sample", "failed", None, "No network."))
    assert 'class="status failed"' in html
    assert "<b>sample</b> <span>No network.</span></button>" in html


@pytest.mark.parametrize("stage", ["ready", "failed", "loading"])
def test_the_status_is_escaped(stage: Any) -> None:
    html = status_html(ModelStatus(EVIL, stage, 0.5, detail=EVIL, title=EVIL, servers=(EVIL,)))
    assert "<script" not in html
    assert html.count(SAFE) == {"ready": 2, "failed": 2, "loading": 3}[stage]
    assert SAFE in status_html(ModelStatus(EVIL, stage))


def test_facts_are_a_table() -> None:
    html = facts_html((("Device", "cpu", "no GPU"), ("Context", "8,192", "a limit")))
    assert html.count("<tr>") == 2
    assert "<tr><th>Device</th><td>cpu</td><td>no GPU</td></tr><tr><th>Context</th><td>8,192</td>" in html


def test_facts_are_escaped() -> None:
    html = facts_html(((EVIL, EVIL, EVIL),))
    assert "<script" not in html
    assert html.count(SAFE) == 3


def test_facts_wait_for_the_model() -> None:
    assert facts_html(()) == "<p>Shown when the model is ready.</p>"


def test_a_failed_switch_is_shown_with_the_model_that_answers() -> None:
    html = status_html(ModelStatus("m", "ready", title="Old", notice=f"new: {EVIL}"))
    assert "Old" in html
    assert SAFE in html
    assert "<script" not in html


def test_an_unloaded_model_says_what_loads_it() -> None:
    assert "the next message loads it" in status_html(ModelStatus("m", "idle"))


def test_the_memory_bar_adds_up() -> None:
    html = memory_html(MemoryUse("cuda", weights=25 * 10**8, kv_cache=5 * 10**8, free=75 * 10**8))
    assert [part.split("%")[0] for part in html.split("width:")[1:]] == ["25.0", "5.0", "70.0"]
    assert "weights 2.5 GB" in html
    assert "free 7.0 GB" in html
    assert memory_html(None) == ""


def test_a_cache_larger_than_what_is_free_fills_the_bar() -> None:
    html = memory_html(MemoryUse("cuda", weights=10**9, kv_cache=5 * 10**9, free=10**9))
    assert [part.split("%")[0] for part in html.split("width:")[1:]] == ["50.0", "50.0", "0.0"]


def test_an_automatic_choice_of_the_model_says_why() -> None:
    status = ModelStatus("auto", "ready", chosen_because="no IBM Granite is here yet")
    assert "No IBM Granite is here yet." in status_html(status)
    assert "title" not in status_html(replace(status, chosen_because=""))
