"""The compose file: vLLM and the page in front of it."""

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_profile_starts_vllm_and_the_page_in_front_of_it() -> None:
    started = {name for name, service in SERVICES.items() if "vllm" in service["profiles"]}
    assert started == {"vllm", "page"}
    command = SERVICES["page"]["command"]
    assert command[command.index("--backend") + 1] == "http://vllm:8000/v1"


def test_vllm_has_a_full_tag_its_gpus_and_a_health_check() -> None:
    vllm = SERVICES["vllm"]
    assert re.fullmatch(r"vllm/vllm-openai:v\d+\.\d+\.\d+", vllm["image"])
    assert "--tensor-parallel-size ${TP:-1}" in vllm["command"]
    (device,) = vllm["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == "${TP:-1}"
    assert vllm["ipc"] == "host"
    assert "/health" in vllm["healthcheck"]["test"][-1]
    assert "ports" not in vllm, "only the page reaches it"


def test_the_default_parsers_are_those_of_the_readme_for_the_default_model() -> None:
    parsers = re.search(r"\$\{PARSERS:-(.+?)\}", SERVICES["vllm"]["command"])
    assert parsers
    assert f"| 4.0, 4.1 | `{parsers[1]}` |" in README
    assert "granite-4.1" in SERVICES["vllm"]["command"]


def test_every_volume_is_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
