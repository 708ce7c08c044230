"""The compose file: vLLM and the page in front of it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
PAGE = (ROOT / "docs/remote.md").read_text(encoding="utf-8")


def test_the_profile_starts_vllm_and_the_page_in_front_of_it() -> None:
    started = {name for name, service in SERVICES.items() if "vllm" in service["profiles"]}
    assert started == {"vllm", "page"}
    command = SERVICES["page"]["command"]
    assert command[command.index("--backend") + 1] == "http://vllm:8000/v1"


def test_vllm_has_a_full_tag_its_gpus_and_a_health_check() -> None:
    vllm = SERVICES["vllm"]
    assert re.fullmatch(r"vllm/vllm-openai:v\d+\.\d+\.\d+", vllm["image"])
    (device,) = vllm["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "${TP:-1}"
    assert vllm["ipc"] == "host"
    assert "/health" in vllm["healthcheck"]["test"][-1]
    assert "ports" not in vllm, "only the page reaches it"


def started(folder: Path, **variables: str) -> str:
    """Return the arguments of vllm in its service. The script of the service runs with a fake vllm that prints them."""
    program = folder / "vllm"
    program.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    service = SERVICES["vllm"]
    (script,) = service["command"]
    defaults = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["environment"][name]) for name in ("MODEL", "TP", "PARSERS")
    }
    run = subprocess.run(
        [*service["entrypoint"], script.replace("$$", "$")],
        env={"PATH": f"{folder}:/usr/bin:/bin", **defaults, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def parsers_of(family: str) -> str:
    """What the table of the documentation has for ``family``."""
    row = re.search(rf"^\| {re.escape(family)} \| `(--enable-auto-tool-choice .+?)`", PAGE, re.MULTILINE)
    assert row
    return row[1]


@pytest.mark.parametrize(
    ("model", "family", "thinks"),
    [
        ("granite-3.1-8b-instruct", "3.1 to 3.3", False),
        ("granite-3.2-8b-instruct", "3.1 to 3.3", True),
        ("granite-3.3-2b-instruct", "3.1 to 3.3", False),
        ("granite-4.0-h-small", "4.0, 4.1", True),
        ("granite-4.1-30b", "4.0, 4.1", True),
        ("granite-4.2-8b", "4.2", True),
    ],
)
def test_each_family_gets_the_documented_parsers(tmp_path: Path, model: str, family: str, thinks: bool) -> None:
    parsers = parsers_of(family)
    if not thinks:  # "the last option only for 3.2"
        parsers = parsers.removesuffix(" --reasoning-parser granite")
    model = f"ibm-granite/{model}"
    assert started(tmp_path, MODEL=model, TP="2") == f"serve {model} --tensor-parallel-size 2 {parsers}"


def test_without_variables_it_serves_a_granite_and_parsers_can_be_named(tmp_path: Path) -> None:
    usual = f"serve ibm-granite/granite-4.1-8b --tensor-parallel-size 1 {parsers_of('4.0, 4.1')}"
    assert started(tmp_path) == usual
    assert started(tmp_path, PARSERS="--tool-call-parser mine").endswith(" 1 --tool-call-parser mine")


def test_every_volume_is_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
