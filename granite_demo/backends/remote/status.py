"""What is known of other servers, as the state of the model that answers."""

from collections.abc import Iterator, Sequence

from granite_demo.backends.remote.endpoints import Endpoint
from granite_demo.backends.remote.families import find_family
from granite_demo.errors import InvalidRequestError
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import Fact, Feature, ModelStatus

AUTO = "auto"
"""The name under which the page offers the servers' own first model."""
THERE = "the model runs there, not here"
UNABLE: tuple[tuple[Feature, str], ...] = (
    ("comparing precisions", "The model runs on another server, which loads it in one way only."),
    ("special tokens", "The other server decides what it takes for control tokens."),
)
OWN = "granite-demo"
"""The kind of server that can do what this one can."""


def state_of(endpoints: Sequence[Endpoint], chosen: str) -> ModelStatus:
    """``chosen`` is the model to ask for; empty for the first that is listed."""
    up = [one for one in endpoints if one.up]
    listed = list(dict.fromkeys(served.name for one in up for served in one.seen.models)) if up else []  # type: ignore[union-attr]
    model = chosen or next(iter(listed), "")
    facts = tuple(_facts(endpoints))
    family = find_family(model)
    if up and model:
        missing = chosen and listed and chosen not in listed
        notice = f"The server does not list a model {chosen}. It has: {', '.join(listed)[:300]}." if missing else ""
        return ModelStatus(
            model,
            "ready",
            1.0,
            title=model,
            about="A model of another server.",
            servers=tuple(_shown(one) for one in endpoints),
            facts=facts,
            context_length=_context_length(up, model),
            notice=notice,
            switches=family.switches,
            unable=tuple(_unable(up)),
        )
    name = model or AUTO
    if any(not one.looked.is_set() for one in endpoints):
        return ModelStatus(name, "loading", detail=f"asking {endpoints[0].shown}", facts=facts)
    why = "The server is up, but lists no model. Load one there, or name one with --backend-model."
    if not up:
        why = " ".join(one.seen.why for one in endpoints if one.seen) + " It is looked for every second."
    return ModelStatus(name, "failed", detail=why, title=model, facts=facts)


def _context_length(up: Sequence[Endpoint], model: str) -> int | None:
    lengths = [
        served.context_length
        for one in up
        for served in (one.seen.models if one.seen else ())
        if served.name == model and served.context_length
    ]
    return min(lengths, default=None)  # the one that every server holds


def _facts(endpoints: Sequence[Endpoint]) -> Iterator[Fact]:
    for one in endpoints:
        yield "Device", _shown(one), THERE if one.up or not one.seen else one.seen.why
        if one.refused:
            yield "Left out", ", ".join(sorted(one.refused)), "the server does not take these fields"
    yield "Switches", "by the model's name", "the template of another server cannot be looked into"


def _shown(endpoint: Endpoint) -> str:
    return f"{endpoint.kind} at {endpoint.shown}" if endpoint.kind else endpoint.shown


def _unable(up: Sequence[Endpoint]) -> Iterator[tuple[Feature, str]]:
    yield from UNABLE
    if any(one.kind != OWN for one in up):
        yield "fill in the middle", "It is not certain that the other server can fill a gap. vLLM and SGLang cannot."
    if any("logprobs" in one.unknown for one in up):
        yield "log probabilities", "The other server tells no log probabilities."
    if any("echo" in one.unknown for one in up):
        yield "scoring", "The other server does not score a text: it takes no echo with log probabilities."


def check_options(options: LoadOptions) -> None:
    """Raise InvalidRequestError where ``options`` ask for more than a name."""
    if options != LoadOptions(options.model, revision=options.revision):
        raise InvalidRequestError(
            "Precision, attention and context are chosen where the other server is started. Leave them as they are."
        )
