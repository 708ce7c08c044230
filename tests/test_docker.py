"""The image: what the Dockerfile promises, read from it, and the application run as the image runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from granite_demo.settings import OPTIONS, PREFIX, Settings

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGES = ("cpu", "cuda")
UID = 1000


@dataclass(slots=True)
class Stage:
    """One FROM and what follows it."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """(instruction, the rest of its line)."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in line.split())


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name, in order; what stands before the first is in ""."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    found = {"": Stage("")}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = Stage(base)
        else:
            list(found.values())[-1].steps.append((name, rest))
    return found


every_image = pytest.mark.parametrize("image", IMAGES)


def test_the_gpu_image_is_what_a_build_without_target_makes() -> None:
    assert list(stages())[-1] == "cuda"


@every_image
def test_it_does_not_run_as_root(image: str) -> None:
    assert stages()[image].last("USER") == str(UID)
    assert f"useradd --create-home --uid {UID} user" in stages()[image].all("RUN")[0]


@every_image
def test_signals_reach_python_and_zombies_are_reaped(image: str) -> None:
    assert json.loads(stages()[image].last("ENTRYPOINT")) == ["tini", "--"]
    assert json.loads(stages()[image].last("CMD")) == ["python", "app.py"]


def copied(stage: Stage) -> Iterator[tuple[list[str], str]]:
    for line in stage.all("COPY"):
        parts = line.split()
        yield (
            [part for part in parts if part.startswith("--")],
            " ".join(part for part in parts if not part.startswith("--")),
        )


@every_image
def test_the_application_is_roots_and_cannot_be_written(image: str) -> None:
    from_context = [flags for flags, _ in copied(stages()[image]) if not any(flag[2:6] == "from" for flag in flags)]
    assert from_context == [["--chmod=555"]] * 3


def test_what_is_copied_exists_and_is_in_the_build_context() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    names = {
        place.split()[0]
        for stage in stages().values()
        for flags, place in copied(stage)
        if not any(flag.startswith("--from") for flag in flags)
    }
    assert names == set(allowed)
    assert all((ROOT / name).exists() for name in names)


def test_stages_are_copied_from_after_they_were_made() -> None:
    names = list(stages())
    for name, stage in stages().items():
        sources = [flag.split("=")[1] for flags, _ in copied(stage) for flag in flags if flag.startswith("--from")]
        assert all(names.index(source) < names.index(name) for source in sources)


def test_nothing_is_fetched_by_address_and_nothing_is_secret() -> None:
    every = [step for stage in stages().values() for step in stage.steps]
    assert "ADD" not in {name for name, _ in every}
    assert not [rest for name, rest in every if name == "RUN" and re.search(r"\b(curl|wget|git)\b", rest)]
    declared = " ".join(rest for name, rest in every if name in ("ARG", "ENV", "LABEL"))
    assert not re.search("token|secret|password|key|hf_[a-z0-9]{8}", declared, re.IGNORECASE)


def test_bases_have_full_tags() -> None:
    own = set(stages())
    bases = {stage.base for stage in stages().values()} - own - {"packages-flash-${FLASH_ATTENTION}"}
    assert all(re.fullmatch(r"[\w/]+:\d+(\.\d+)+-[\w.-]+(@sha256:[0-9a-f]{64})?", base) for base in bases), bases
    assert {"packages-flash-no", "packages-flash-yes"} <= own
    assert stages()[""].all("ARG") == ["FLASH_ATTENTION=no"]


@every_image
def test_variables_are_ones_that_settings_know(image: str) -> None:
    environment = stages()[image].environment
    known = {option.variable for option in OPTIONS}
    assert {name for name in environment if name.startswith(PREFIX)} <= known
    settings = Settings.resolve({}, environment)
    assert settings.public
    assert stages()[image].all("EXPOSE") == [str(settings.port)]


@every_image
def test_what_is_written_lies_in_the_volume_and_nothing_is_reported(image: str) -> None:
    environment = stages()[image].environment
    folders = {value for name, value in environment.items() if value.startswith("/") and name not in ("PATH", "HOME")}
    assert stages()[image].all("VOLUME") == ["/data"]
    assert all(folder.startswith("/data/") for folder in folders - {"/tmp/gradio"})
    assert "install -d -o user -g user /data" in stages()[image].all("RUN")[0]
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert environment["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_both_images_differ_only_in_what_the_gpu_needs() -> None:
    cpu, cuda = (stages()[image] for image in IMAGES)
    extra = cuda.environment.items() - cpu.environment.items()
    assert {name for name, _ in extra} == {"CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    ends = [[step for step in stage.steps if step[0] not in ("RUN", "ENV", "COPY")] for stage in (cpu, cuda)]
    assert ends[0] == ends[1]


def test_packages_are_installed_with_hashes() -> None:
    installs = [
        command
        for stage in stages().values()
        for run in stage.all("RUN")
        for command in run.split("&& ")
        if re.search(r"/pip (install|wheel) ", command)
    ]
    [own_wheel] = [command for command in installs if "--require-hashes" not in command]
    assert "--no-deps wheels/*.whl" in own_wheel
    assert len(installs) == 5


def locked(lock: str) -> dict[str, list[str]]:
    """The lock's requirements with their hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / lock).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r" \\\n\s*", " ", text).splitlines()
    return {line.split(" --hash=")[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line) for line in lines}


@pytest.mark.parametrize("name", ["requirements", "requirements-cpu"])
def test_the_lock_holds_what_is_required_with_hashes_and_no_address(name: str) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    text, pins = (ROOT / f"{name}.lock").read_text(encoding="utf-8"), locked(f"{name}.lock")
    assert not re.search(r"://|^-|--(?!hash)", text, re.MULTILINE)
    assert all(pins.values())
    pinned: dict[str, list[Requirement]] = {}
    for line in pins:
        pinned.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    for line in (ROOT / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        wanted = Requirement(line)
        versions = [next(iter(found.specifier)).version for found in pinned[canonicalize_name(wanted.name)]]
        assert all(wanted.specifier.contains(version) for version in versions), line


def test_the_cpu_image_has_the_same_packages_without_torch() -> None:
    whole, small = locked("requirements.lock"), locked("requirements-cpu.lock")
    assert small.items() < whole.items()
    left_out = {line.split("==")[0] for line in whole.keys() - small.keys()}
    assert {"accelerate", "bitsandbytes", "torch", "transformers", "triton"} < left_out
    assert {name for name in left_out if fnmatch(name, "nvidia-*") or fnmatch(name, "cuda-*")}
    assert "-r requirements-cpu.lock" in stages()["cpu-packages"].last("RUN")
    assert "-r requirements.lock" in stages()["cuda-packages"].last("RUN")


def test_the_spaces_block_names_the_image() -> None:
    block = metadata_load(ROOT / "README.md") or {}
    assert (block["sdk"], str(block["app_port"])) == ("docker", stages()["cuda"].environment["GRANITE_DEMO_PORT"])
    assert len(block["short_description"]) <= 60
    assert block["license"] == "apache-2.0"


def unprivileged() -> list[str]:
    """A command's beginning that makes it run as uid 1000, able to read all (Python may lie in root's home)."""
    keep = "-all,+dac_read_search"
    ids = [f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    return ["setpriv", *ids, f"--inh-caps={keep}", f"--ambient-caps={keep}", "--no-new-privs"]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the application, root's and read-only, and with a home and a volume of uid 1000."""
    place = tmp_path_factory.mktemp("image")
    app = place / "app"
    app.mkdir()
    for _, line in copied(stages()["cpu"]):
        source = line.split()[0]
        if source.startswith("/"):
            continue
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, app / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, app)
    for path in [app, *app.rglob("*")]:
        path.chmod(0o555)
    for name in ("home", "data", "tmp"):
        (place / name).mkdir()
        os.chown(place / name, UID, UID)
    yield place
    for path in [app, *app.rglob("*")]:
        path.chmod(0o755)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.release
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user")
def test_it_runs_as_uid_1000_from_a_read_only_folder_with_an_empty_home(place: Path) -> None:
    from tests.tinymodels import write_checkpoint

    model = write_checkpoint(place / "model", "granite")
    environment = {
        name: value.replace("/data", str(place / "data")) for name, value in stages()["cpu"].environment.items()
    }
    environment |= {
        "PATH": os.environ["PATH"],
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "GRADIO_TEMP_DIR": str(place / "tmp" / "gradio"),
        "HF_HUB_OFFLINE": "1",
        "GRANITE_DEMO_PORT": "0",
        "GRANITE_DEMO_HOST": "127.0.0.1",
    }
    before = files_of(place / "app")
    command = [*unprivileged(), sys.executable, "app.py", "--model", str(model)]
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=place / "app", env=environment, stderr=output)
    try:
        until(lambda: "granite-demo is at" in log.read_text() or process.poll() is not None, 120, log)
        [url] = re.findall(r"granite-demo is at (http://\S+)", log.read_text())
        assert os.stat(f"/proc/{process.pid}").st_uid == UID
        until(lambda: health(url)["model"] in ("ready", "failed"), 120, log)
        assert health(url)["model"] == "ready", log.read_text()
        with urllib.request.urlopen(url, timeout=30) as page:
            assert page.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert files_of(place / "app") == before
    assert files_of(place / "home") == set()


def health(url: str) -> dict[str, str]:
    """Return the answer that the HEALTHCHECK of the image requests."""
    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        state: dict[str, str] = json.load(answer)
        return state


def until(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@every_image
def test_the_health_check_asks_the_port_of_the_settings(image: str) -> None:
    check = stages()[image].last("HEALTHCHECK")
    command = json.loads(check.split(" CMD ")[1])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "health check", "exec")
    assert "GRANITE_DEMO_PORT" in command[2]
    assert "/health" in command[2]
