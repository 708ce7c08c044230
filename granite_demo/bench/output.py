"""Where a report goes: tables or JSON to standard output, and the files that were named."""

import sys
from collections.abc import Callable
from pathlib import Path

from granite_demo.bench import tables
from granite_demo.bench.options import STANDARD_OUTPUT, BenchOptions
from granite_demo.bench.report import Report
from granite_demo.errors import ConfigurationError


def write(report: Report, asked: BenchOptions) -> None:
    """Print ``report`` and write its files. Raises ConfigurationError for one that cannot be written."""
    deliver(report.as_json(), lambda: tables.show(report), asked)
    try:
        if asked.plot_file is not None:
            from granite_demo.bench import plot

            plot.save(report, asked.plot_file)
    except OSError as error:
        raise _not_written(error) from error


def deliver(text: str, show: Callable[[], None], asked: BenchOptions) -> None:
    """``text``, which is JSON, to standard output, or what ``show`` prints and a file. Raises as ``write`` does."""
    if asked.json_file == STANDARD_OUTPUT:
        sys.stdout.write(f"{text}\n")
        return
    show()
    try:
        if asked.json_file is not None:
            Path(asked.json_file).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise _not_written(error) from error


def _not_written(error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The report cannot be written: {error}.")
