"""What the terminal shows while a model gets ready."""

import io
import logging
import sys

import pytest
from rich.console import Console

from granite_demo.cli.terminal import LoadReporter, _Masked
from granite_demo.types.model_status import ModelStatus
from tests.fakes import READY


def test_a_bar_with_stage_and_detail_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    reporter = LoadReporter(console)
    reporter(ModelStatus("sample", "downloading", 0.34, "31 of 93 MB"))
    reporter(ModelStatus("sample", "downloading", 0.68, "62 of 93 MB"))
    reporter(READY)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "downloading" in text
    assert "62 of 93 MB" in text


def test_no_bar_without_a_terminal_but_a_line_for_each_stage(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), width=100)
    reporter = LoadReporter(console)
    with caplog.at_level(logging.INFO, "granite_demo"):
        for status in (
            ModelStatus("sample", "downloading", 0.1, "9 of 93 MB"),
            ModelStatus("sample", "downloading", 0.2, "18 of 93 MB"),
            ModelStatus("sample", "loading"),
            READY,
        ):
            reporter(status)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().strip() == ""
    assert caplog.messages == ["sample: downloading", "sample: loading", "Device: cpu (a test)", "Fake model is ready."]


def test_a_failure_is_an_error_line(caplog: pytest.LogCaptureFixture) -> None:
    LoadReporter(Console(file=io.StringIO()))(ModelStatus("sample", "failed", None, "No network."))
    assert caplog.messages == ["sample is not ready. No network."]


def test_t15_t16_a_log_line_tells_no_secret_and_moves_no_cursor() -> None:
    formatter = _Masked(("a+key", ""))
    try:
        raise ValueError("hf_" + "abcDEF123" * 4)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "with %s\r\x1b[2K", ("a+key",), sys.exc_info())
    text = formatter.format(record)
    assert "a+key" not in text
    assert "hf_abc" not in text
    assert "with ***\\r\\x1b[2K\nTraceback" in text
