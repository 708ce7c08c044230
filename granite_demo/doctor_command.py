"""The command ``doctor``: one chat here and on another server, what differs, and why."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace

import typer
from rich.console import Console

from granite_demo import doctor, flags
from granite_demo.backends import Backend
from granite_demo.errors import ConfigurationError
from granite_demo.messages import Message
from granite_demo.printing import print_json
from granite_demo.remote.backend import RemoteBackend
from granite_demo.sampling_params import SamplingParams
from granite_demo.scoring_command import print_table
from granite_demo.settings import Settings
from granite_demo.types import GenerationRequest

QUESTION = "What is the capital of France? Answer in one sentence."
TOKENS = 48


def add_doctor_command(
    cli: typer.Typer, console: Console, environ: Mapping[str, str], opened: Callable[[Settings, Console], Backend]
) -> None:
    """``opened`` gives the backend of settings, its model ready."""

    @cli.command("doctor")
    def run(
        text: flags.Question = QUESTION,
        backend: flags.Url = None,
        backend_key: flags.UrlKey = None,
        backend_model: flags.BackendModel = None,
        as_json: flags.AsJson = False,
        model: flags.Model = None,
        revision: flags.Revision = None,
        device: flags.Device = None,
        dtype: flags.Dtype = None,
        quantization: flags.Quantization = None,
        attention: flags.Attention = None,
        engine: flags.Engine = None,
        context: flags.Context = None,
        threads: flags.Threads = None,
        cache_dir: flags.CacheDir = None,
    ) -> None:
        """Ask a model here and a server at --url the same, greedily, and tell what differs and the likely cause.

        The exit code is 0 where nothing differs, else 1.
        """
        settings = Settings.resolve(locals(), environ)
        if not settings.backend:
            raise ConfigurationError("doctor compares with another server. Name it with --url.")
        request = GenerationRequest((Message("user", text),), sampling=SamplingParams(max_tokens=TOKENS))
        # The server's model is named by --backend-model alone: --model is the one here.
        with closing(opened(replace(settings, model="auto"), console)) as remote:
            there = asyncio.run(_look_there(remote, request))
        with closing(opened(replace(settings, backend=""), console)) as local:
            here = asyncio.run(_look_here(local, request))
        findings = doctor.diagnose(here, there)
        cause = doctor.likely_cause(findings)
        if as_json:
            print_json({"findings": [asdict(finding) for finding in findings], "cause": cause})
        else:
            show(findings, cause)
        raise typer.Exit(1 if cause else 0)


async def _look_here(backend: Backend, request: GenerationRequest) -> doctor.Side:
    view = await backend.inspect(request, parts=True)
    ids = [index for part in view.parts for index, _ in part.tokens] if view else []
    return await doctor.look(backend, request, tuple(ids))


async def _look_there(backend: Backend, request: GenerationRequest) -> doctor.Side:
    ids = await backend.token_ids(request) if isinstance(backend, RemoteBackend) else ()
    return await doctor.look(backend, request, ids)


def show(findings: tuple[doctor.Finding, ...], cause: str) -> None:
    """Print a table, and the cause."""
    rows = [(finding.what, finding.here, finding.there, "differs" if finding.cause else "") for finding in findings]
    output = print_table(("", "here", "there", " "), rows, left=("", "here", "there", " "))
    output.print(f"Likely cause: {cause}" if cause else "Nothing differs but the speed.", markup=False)
