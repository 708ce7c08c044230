"""Runs the soak test (``python -m tests.load``) or measures the table of targets (``python -m tests.load targets``)."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.load.process import server
from tests.load.soak import Soak, soak


def as_text(found: Soak) -> str:
    """Return the figures of a soak test, one in each line."""
    milliseconds = {
        **{f"web layer's time to first token, {source}": times for source, times in found.ttft.items()},
        "light requests": found.light,
        "left -> engine idle": found.idle,
    }
    lines = [f"{sum(found.outcomes.values())} requests in {found.seconds:.0f} s: {found.outcomes}"]
    lines += [f"{name}: p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms" for name, (p50, p95) in milliseconds.items()]
    lines.append(f"memory: {found.slope:+.2f} MB/100 requests, {found.grown:+.1f} MB in all")
    lines.append(f"after warm-up: {found.base}, at the end: {found.end}")
    return "\n".join([*lines, *found.failures, *(f"BROKEN: {name}" for name in found.broken)])


def main() -> int:
    """Return 0, or 1 if a figure is outside its limit."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("soak", "targets"), default="soak")
    parser.add_argument("--visitors", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=("fake", "sample"), default="fake")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.what == "targets":
        from tests.load.targets import measure, table

        rows = asyncio.run(measure(asked.visitors, asked.seconds))
        text, values = table(rows), json.dumps([row.as_dict() for row in rows], indent=2)
        bad = any(not row.met for row in rows)
    else:
        with server(asked.engine) as running:
            found = asyncio.run(soak(running, asked.visitors, asked.seconds))
        text, values, bad = as_text(found), json.dumps(found.as_dict(), indent=2), bool(found.broken)
    print(text)
    if asked.json:
        asked.json.write_text(values + "\n", encoding="utf-8")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
