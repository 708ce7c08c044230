"""Writes a report: tables or JSON to standard output, a JSON file, and a picture."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from granite_demo.bench import tables
from granite_demo.bench.measure import Spread
from granite_demo.bench.options import STANDARD_OUTPUT, BenchOptions
from granite_demo.bench.report import BenchReport
from granite_demo.bench.suites.decode import Decode
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.errors import ConfigurationError


def write(report: BenchReport, options: BenchOptions) -> None:
    """Print ``report`` and write its files. Raises ConfigurationError if a file cannot be written."""
    deliver(report.as_json(), lambda: tables.show(report), options)
    try:
        if options.plot_file is not None:
            save(report, options.plot_file)
    except OSError as error:
        raise _not_written(error) from error


def deliver(text: str, show: Callable[[], None], options: BenchOptions) -> None:
    """Write the JSON ``text`` to standard output, or call ``show`` and write ``text`` to a file.

    Raises as ``write``.
    """
    if options.json_file == STANDARD_OUTPUT:
        sys.stdout.write(f"{text}\n")
        return
    show()
    try:
        if options.json_file is not None:
            Path(options.json_file).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise _not_written(error) from error


def _not_written(error: OSError) -> ConfigurationError:
    return ConfigurationError(f"The report cannot be written: {error}.")


# The palette of Okabe and Ito for colour-blind readers. The hatches are for print in grey.
DOCUMENTED_BAR, GREEDY_BAR, SAMPLED_BAR = ("#999999", ""), ("#0072B2", ""), ("#56B4E9", "//")
FOLLOW_UP_BAR = ("#E69F00", "\\\\")
LIMIT_COLOUR = "#D55E00"
PIXELS = 1000
DPI = 100
LOG_FROM = 30.0
"""If the highest bar is this many times the lowest, the axis is logarithmic: a linear axis would hide the lowest."""

Bars = dict[str, tuple[tuple[str, str], list[Spread | None]]]
"""Maps a name to its (colour, hatch) and to one value for each group."""


def save(report: BenchReport, path: Path) -> None:
    """Draw the report to ``path``. The suffix of ``path`` selects the format; the default is PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [draw for draw, found in ((_draw_decode, report.decode), (_draw_ttft, report.ttft)) if found]
    figure = Figure(figsize=(PIXELS / DPI, 4.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, draw in zip(figure.subplots(1, max(1, len(parts)), squeeze=False)[0], parts, strict=False):
        draw(axes, report)
    figure.suptitle(f"{report.model['title']}, {report.model['precision']}, {report.device['name']}", fontsize=11)
    figure.savefig(path, dpi=DPI, format=path.suffix.removeprefix(".") or "png")


def decode_bars(decode: Decode) -> tuple[list[int], Bars, list[float | None]]:
    """Return the numbers of users, the bars, and the limit of the engine for each number of users."""
    users = sorted({row.users for row in decode.rows})
    own = {(row.users, row.choice): row for row in decode.rows if not row.documented}
    base = [decode.baseline(count) for count in users]
    bars: Bars = {
        "transformers, documented": (DOCUMENTED_BAR, [row.rate if row else None for row in base]),
        "granite-demo, greedy": (GREEDY_BAR, [own[count, "greedy"].rate for count in users]),
        "granite-demo, sampled": (SAMPLED_BAR, [own[count, "sampled"].rate for count in users]),
    }
    return users, bars, [own[count, "greedy"].limit for count in users]


def ttft_bars(rows: Sequence[TtftRow]) -> tuple[list[int], Bars]:
    """Return the lengths of the prompts, and the bars."""
    return [row.prompt_tokens for row in rows], {
        "transformers, documented": (DOCUMENTED_BAR, [row.documented for row in rows]),
        "granite-demo, new prompt": (GREEDY_BAR, [row.cold for row in rows]),
        "granite-demo, follow-up": (FOLLOW_UP_BAR, [row.follow_up for row in rows]),
    }


def _draw_decode(axes: Any, report: BenchReport) -> None:
    assert report.decode is not None
    users, bars, limits = decode_bars(report.decode)
    _draw_bars(axes, [f"{count}" for count in users], bars, _rate, [limit for limit in limits if limit])
    for group, limit in enumerate(limits):
        if limit is not None:
            label = "limit: reading weights and cache" if group == 0 else None
            axes.hlines(
                limit, group - 0.45, group + 0.45, colors=LIMIT_COLOUR, linestyles="dashed", linewidth=2, label=label
            )
    axes.set(title="Speed of all users together", xlabel="users at the same time", ylabel="tokens/s")
    axes.legend(fontsize=9, loc="upper left")


def _draw_ttft(axes: Any, report: BenchReport) -> None:
    lengths, bars = ttft_bars(report.ttft)
    _draw_bars(axes, [f"{length:,}" for length in lengths], bars, "{:.2g}".format)
    axes.set(title="Time to first token", xlabel="tokens in the prompt", ylabel="seconds")
    axes.legend(fontsize=9, loc="upper left")


def _draw_bars(
    axes: Any, groups: Sequence[str], bars: Bars, label: Callable[[float], str], others: Sequence[float] = ()
) -> None:
    width = 0.9 / len(bars)
    shown = list(others)
    for index, (name, ((colour, hatch), values)) in enumerate(bars.items()):
        found = [(group, value) for group, value in enumerate(values) if value is not None]
        shown += [value.median for _, value in found]
        places = [group + (index - (len(bars) - 1) / 2) * width for group, _ in found]
        medians = [value.median for _, value in found]
        whiskers = [[v.median - v.low for _, v in found], [v.high - v.median for _, v in found]]
        drawn = axes.bar(
            places, medians, width, yerr=whiskers, label=name, color=colour, hatch=hatch, edgecolor="black",
            linewidth=0.5, error_kw={"elinewidth": 1},
        )  # fmt: skip
        axes.bar_label(drawn, list(map(label, medians)), fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    if max(shown) / min(shown) > LOG_FROM:
        axes.set_yscale("log")
    # Space for the legend above the bars.
    axes.margins(y=0.45)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
