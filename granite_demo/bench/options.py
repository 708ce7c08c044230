"""The options of the command ``bench``, and its defaults for a CPU and for a GPU."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from granite_demo.errors import ConfigurationError

SUITES = ("load", "decode", "ttft", "page")
"""In the order of measurement: the load first, before other suites use memory, and the page last."""
LIMIT = "limit"
"""This suite loads the model twice, so it runs alone."""
LEAST_PROMPT = 32
"""Tokens. A follow-up needs a first prompt, an answer to it, and the next turn."""
STANDARD_OUTPUT = "-"


@dataclass(frozen=True, slots=True)
class BenchSizes:
    """How much to measure.

    ``tokens`` and ``prompt`` are the lengths of an answer and its prompt, except in ``ttft``.
    """

    users: tuple[int, ...]
    tokens: int
    prompt: int
    lengths: tuple[int, ...]
    """The lengths of the prompts in ``ttft``."""
    rounds: int = 3


ON_CPU = BenchSizes(users=(1, 4), tokens=12, prompt=16, lengths=(128, 1024))
ON_GPU = BenchSizes(users=(1, 4, 16, 64), tokens=256, prompt=128, lengths=(128, 1024, 8192))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """The flags of the command. None and empty: chosen by device and model."""

    suites: tuple[str, ...] = ()
    users: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    tokens: int | None = None
    rounds: int = 3
    json_file: str | None = None
    plot_file: Path | None = None
    processes: int | None = None
    """The number of processes that share the model, each with its own GPU. None: as many as torchrun started."""

    @classmethod
    def parse(
        cls,
        suite: str | None,
        users: str | None,
        prompts: str | None,
        tokens: int | None,
        rounds: int,
        json_file: str | None,
        plot_file: Path | None,
        processes: int | None = None,
    ) -> "BenchOptions":
        """Parse the flags.

        Raises ConfigurationError for a mistake that would otherwise appear after minutes of measuring.
        """
        if plot_file is not None and find_spec("matplotlib") is None:
            raise ConfigurationError("--plot needs matplotlib. Run: pip install matplotlib")
        for flag, path in (("--json", json_file), ("--plot", plot_file)):
            if path not in (None, STANDARD_OUTPUT) and not Path(path or "").absolute().parent.is_dir():
                raise ConfigurationError(f"{flag} names a file in a folder that does not exist: {path}.")
        return cls(
            suites=_suites(suite),
            users=_numbers("--users", users, 1),
            lengths=_numbers("--prompts", prompts, LEAST_PROMPT),
            tokens=tokens,
            rounds=rounds,
            json_file=json_file,
            plot_file=plot_file,
            processes=processes,
        )

    def check_processes(self, started: int) -> None:
        """Raise ConfigurationError if the options do not agree with the number of ``started`` processes."""
        wanted = self.processes or started
        if wanted != started:
            raise ConfigurationError(
                f"--tensor-parallel {wanted} needs {wanted} processes, but {started} are running. Start it with: "
                f"torchrun --nproc-per-node {wanted} -m granite_demo bench --tensor-parallel {wanted}"
            )
        if started > 1 and not set(self.suites) <= {"decode", "ttft"}:
            raise ConfigurationError("With several processes, bench can measure only --suite decode and ttft.")
        if started > 1 and self.plot_file:
            raise ConfigurationError("With several processes, bench cannot draw a picture. Remove --plot.")

    def sizes(self, device: str) -> BenchSizes:
        """Return the sizes from the flags, with the defaults for ``device``."""
        usual = ON_CPU if device == "cpu" else ON_GPU
        return BenchSizes(
            users=self.users or usual.users,
            tokens=self.tokens or usual.tokens,
            prompt=usual.prompt,
            lengths=self.lengths or usual.lengths,
            rounds=self.rounds,
        )


def _suites(text: str | None) -> tuple[str, ...]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if names == [LIMIT]:
        return (LIMIT,)
    for name in names:
        if name == LIMIT:
            raise ConfigurationError("--suite limit runs alone. Remove the other suites.")
        if name not in (*SUITES, "all"):
            raise ConfigurationError(f"--suite must be {LIMIT}, all, or a list of {', '.join(SUITES)}, not {name!r}.")
    return tuple(suite for suite in SUITES if suite in names or "all" in names)


def _numbers(flag: str, text: str | None, least: int) -> tuple[int, ...]:
    """Return the distinct numbers in ``text`` in ascending order."""
    try:
        numbers = {int(part) for part in (text or "").split(",") if part.strip()}
    except ValueError:
        raise ConfigurationError(f"{flag} must be whole numbers like 1,4,16, not {text!r}.") from None
    if any(number < least for number in numbers):
        raise ConfigurationError(f"{flag} must be {least} or more, not {min(numbers)}.")
    return tuple(sorted(numbers))
