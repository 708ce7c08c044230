"""Prints a report as tables on a terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from granite_demo.bench.measure import Spread
from granite_demo.bench.report import BenchReport
from granite_demo.bench.suites.decode import Decode
from granite_demo.bench.suites.load import Load
from granite_demo.bench.suites.ttft import TtftRow
from granite_demo.types.model_status import Chosen, gigabytes

MISSING = "-"
REPORT_WIDTH = 130
"""Characters in a line if the output is not a terminal, so that no row is wrapped."""


def show(report: BenchReport, console: Console | None = None) -> None:
    """Print ``report``, by default to standard output."""
    console = wide_console(console)
    facts = ", ".join(f"{name} {value}" for name, value in report.versions.items() if name != "platform")
    lines = [
        f"{report.model['title']} in {report.model['precision']} on {report.device['name']}, "
        f"{report.device['threads']} threads; {facts}",
        f"Medians of {report.settings['rounds']} rounds; in brackets the lowest and the highest.",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    for table in tables(report):
        console.print()
        console.print(table)
    if start := report.startup:
        console.print(
            f"A server in a new process: page after {start.page:.1f} s, model ready after {start.ready:.1f} s, "
            f"first token in the page after {start.first_token:.1f} s.",
            highlight=False,
        )
    console.print()
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    setup = report.setup
    show_choices(console, ("Precision", setup.precision), ("Attention", setup.attention), ("Engine", setup.engine.kind))
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    console.print(f"Measured in {sum(report.seconds.values()):.0f} s: {parts}.", highlight=False)


def show_choices(console: Console, *choices: tuple[str, Chosen[Any] | None]) -> None:
    """Print each choice with its name and its reason. None is skipped."""
    for name, chosen in choices:
        if chosen:
            console.print(f"{name}: {chosen} ({chosen.reason})", highlight=False, markup=False)


def wide_console(console: Console | None = None) -> Console:
    """Return ``console``, by default standard output, at least ``REPORT_WIDTH`` wide if it is not a terminal."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, REPORT_WIDTH)
    return console


def tables(report: BenchReport) -> Iterable[Table]:
    """Yield a table for each suite that ran."""
    if report.load:
        yield load_table(report.load)
    if report.decode:
        yield decode_table(report.decode)
    if report.ttft:
        yield ttft_table(report.ttft)
    if report.page:
        yield page_table(report)


def load_table(load: Load) -> Table:
    """Return the table of load times and memory."""
    table = report_table("Load and memory", "what", "figure", left=("what",))
    cache = MISSING if load.kv_cache is None else gigabytes(load.kv_cache, 2)
    for name, value in (
        ("load", f"{spread(load.load, 1)} s"),
        ("load by from_pretrained", f"{spread(load.documented, 1)} s" if load.documented else MISSING),
        ("warm-up", f"{spread(load.warm_up, 1)} s"),
        ("weights", gigabytes(load.weights, 2)),
        (f"in use ({load.counted})", gigabytes(load.in_use, 2)),
        ("at its peak", gigabytes(load.peak, 2)),
        (f"KV cache of {load.context:,} tokens", cache),
    ):
        table.add_row(name, value)
    return table


def decode_table(decode: Decode) -> Table:
    """Return the table of speeds by number of users, with the ratio to the fastest documented way and to the limit.

    Evenness is the speed of the slowest user divided by the speed of the fastest.
    """
    title = (
        f"Decoding, {decode.tokens} tokens after a prompt of {decode.prompt_tokens}; "
        f"memory delivers {spread(decode.bandwidth, 1, 1e-9)} GB/s"
    )
    columns = (
        "users",
        "way",
        "precision",
        "sampling",
        "tokens/s",
        "ratio",
        "limit",
        "of limit",
        "first token",
        "evenness",
    )
    table = report_table(title, *columns, left=("way", "precision", "sampling"))
    users = 0
    for row in decode.rows:
        if users and row.users != users:
            table.add_section()
        users = row.users
        base = decode.baseline(users)
        ratio = f"{row.rate.median / base.rate.median:.2f}" if base and row.choice == base.choice else MISSING
        limit = MISSING if row.limit is None else f"{row.limit:,.0f}"
        share = MISSING if row.share is None else f"{row.share:.0%}"
        table.add_row(
            str(users), row.way, row.precision, row.choice, spread(row.rate, 1), ratio, limit, share,
            f"{row.ttft.median:.3f} s", MISSING if row.evenness is None else f"{row.evenness:.0%}",
        )  # fmt: skip
    return table


def ttft_table(rows: Iterable[TtftRow]) -> Table:
    """Return the table of the time to first token by length of the prompt."""
    title = "Time to first token of an idle engine. A follow-up is the next turn of a chat"
    ways = ("generate", "granite-demo", "generate, follow-up", "granite-demo, follow-up")
    table = report_table(title, "tokens", *ways)
    for row in rows:
        figures = (row.documented, row.cold, row.documented_follow_up, row.follow_up)
        table.add_row(
            f"{row.prompt_tokens:,}", *(f"{spread(figure, 3)} s" if figure else MISSING for figure in figures)
        )
    return table


def shared_decode_table(alone: Decode, shared: Decode, processes: int) -> Table:
    """Return a table that compares the speed of several processes that share a model with the speed of one."""
    title = f"Decoding, {shared.tokens} tokens after a prompt of {shared.prompt_tokens}, tokens/s"
    columns = ("users", "sampling", "one process", f"{processes} processes", "ratio", "first token, one", "together")
    table = report_table(title, *columns, left=("sampling",))
    for one, many in zip(alone.rows, shared.rows, strict=True):
        table.add_row(
            str(many.users), many.choice, spread(one.rate, 1), spread(many.rate, 1),
            f"{many.rate.median / one.rate.median:.2f}", f"{one.ttft.median:.3f} s", f"{many.ttft.median:.3f} s",
        )  # fmt: skip
    return table


def shared_ttft_table(alone: Iterable[TtftRow], shared: Iterable[TtftRow], processes: int) -> Table:
    """Return a table that compares the time to first token of several processes with that of one."""
    table = report_table("Time to first token", "tokens", "one process", f"{processes} processes", "ratio")
    for one, many in zip(alone, shared, strict=True):
        ratio = f"{one.cold.median / many.cold.median:.2f}"
        table.add_row(f"{many.prompt_tokens:,}", f"{spread(one.cold, 3)} s", f"{spread(many.cold, 3)} s", ratio)
    return table


def page_table(report: BenchReport) -> Table:
    """Return the table that compares the page and the API with the engine, by number of visitors at the same time."""
    title = f"The page, answers of {report.settings['tokens']} tokens"
    columns = ("visitors", "way", "tokens/s", "while all generate", "cost", "first token")
    table = report_table(title, *columns, left=("way",))
    visitors = 0
    for row in report.page:
        if visitors and row.visitors != visitors:
            table.add_section()
        visitors = row.visitors
        cost = MISSING if row.cost is None else f"{row.cost:.1%}"
        together = spread(row.together, 1) if row.together else MISSING
        table.add_row(str(visitors), row.way, spread(row.rate, 1), together, cost, f"{row.ttft.median:.2f} s")
    return table


def spread(values: Spread, digits: int, scale: float = 1.0) -> str:
    """Format the median, and if there are several values the lowest and the highest: 12.1 (11.9-12.4)."""
    median, low, high = (f"{value * scale:,.{digits}f}" for value in (values.median, values.low, values.high))
    return f"{median} ({low}-{high})" if len(values.values) > 1 else median


def report_table(title: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table. The columns in ``left`` are aligned left and can wrap."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=column not in left)
    return table
