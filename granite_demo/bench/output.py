"""Where a report goes: tables or JSON to standard output, and the files that were named."""

import sys
from pathlib import Path

from granite_demo.bench import tables
from granite_demo.bench.options import STANDARD_OUTPUT, BenchOptions
from granite_demo.bench.report import Report
from granite_demo.errors import ConfigurationError


def write(report: Report, asked: BenchOptions) -> None:
    """Print ``report`` and write its files. Raises ConfigurationError for one that cannot be written."""
    if asked.json_file == STANDARD_OUTPUT:
        sys.stdout.write(f"{report.as_json()}\n")
    else:
        tables.show(report)
    try:
        if asked.json_file not in (None, STANDARD_OUTPUT):
            Path(asked.json_file or "").write_text(f"{report.as_json()}\n", encoding="utf-8")
        if asked.plot_file is not None:
            from granite_demo.bench import plot

            plot.save(report, asked.plot_file)
    except OSError as error:
        raise ConfigurationError(f"The report cannot be written: {error}.") from error
