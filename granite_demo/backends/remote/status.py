"""Makes the model status from the states of the servers."""

from collections.abc import Iterator, Sequence

from granite_demo.backends.remote.endpoints import Endpoint
from granite_demo.backends.remote.families import find_family
from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import Fact, Feature, ModelStatus

AUTO = "auto"
"""The name for the first model of the servers."""
RUNS_THERE = "the model runs on that server"
REMOTE_UNABLE: tuple[tuple[Feature, str], ...] = (
    ("comparing precisions", "The model runs on another server, which loads it in only one precision."),
    ("special tokens", "The other server decides which text it parses as control tokens."),
)
OWN = "granite-demo"
"""The kind of a server that has all features of this program."""


def state_of(endpoints: Sequence[Endpoint], chosen: str) -> ModelStatus:
    """Return the status for the model ``chosen``. Empty: the first model that the servers list."""
    up = [endpoint for endpoint in endpoints if endpoint.up]
    listed = list(dict.fromkeys(served.name for endpoint in up for served in endpoint.models))
    model = chosen or next(iter(listed), "")
    facts = tuple(_facts(endpoints))
    family = find_family(model)
    if up and model:
        missing = chosen and listed and chosen not in listed
        notice = f"The server does not list the model {chosen}. It has: {', '.join(listed)[:300]}." if missing else ""
        return ModelStatus(
            model,
            "ready",
            1.0,
            title=model,
            about="A model of another server.",
            servers=tuple(_name(endpoint) for endpoint in endpoints),
            facts=facts,
            context_length=_context_length(up, model),
            notice=notice,
            switches=family.switches,
            unable=tuple(_unable(up)),
        )
    name = model or AUTO
    if any(not endpoint.probed.is_set() for endpoint in endpoints):
        return ModelStatus(name, "loading", detail=f"connecting to {endpoints[0].address}", facts=facts)
    detail = "The server is up, but lists no model. Load one there, or name one with --backend-model."
    if not up:
        errors = [endpoint.last_probe.error for endpoint in endpoints if endpoint.last_probe]
        detail = " ".join((*errors, "A new try follows every second."))
    return ModelStatus(name, "failed", detail=detail, title=model, facts=facts)


def _context_length(up: Sequence[Endpoint], model: str) -> int | None:
    lengths = [
        served.context_length
        for endpoint in up
        for served in endpoint.models
        if served.name == model and served.context_length
    ]
    return min(lengths, default=None)  # so that the context fits on each server


def _facts(endpoints: Sequence[Endpoint]) -> Iterator[Fact]:
    for endpoint in endpoints:
        error = endpoint.last_probe.error if endpoint.last_probe else ""
        yield "Device", _name(endpoint), error or RUNS_THERE
        if endpoint.refused:
            yield "Left out", ", ".join(sorted(endpoint.refused)), "the server rejects these fields"
    yield "Switches", "by the name of the model", "the chat template of another server is not available"


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.kind} at {endpoint.address}" if endpoint.kind else endpoint.address


def _unable(up: Sequence[Endpoint]) -> Iterator[tuple[Feature, str]]:
    yield from REMOTE_UNABLE
    if any(endpoint.kind != OWN for endpoint in up):
        yield "fill in the middle", "The other server may not be able to fill a gap. vLLM and SGLang cannot."
    if any("logprobs" in endpoint.unsupported for endpoint in up):
        yield "log probabilities", "The other server returns no log probabilities."
    if any("echo" in endpoint.unsupported for endpoint in up):
        yield "scoring", "The other server cannot score a text: it does not accept echo with log probabilities."


def check_options(options: LoadOptions) -> None:
    """Raise InvalidRequestError if ``options`` set anything but the name of the model."""
    if options != LoadOptions(options.model, revision=options.revision):
        raise InvalidRequestError(
            "Precision, attention and context are options of the other server. Leave them at their defaults."
        )
