"""What a client may tell a chat template: the switches that the page has, and no other variable of the template."""

from typing import Any

from granite_demo.api.errors import RefusedError
from granite_demo.api.models import ChatRequest, TemplateControls, TemplateKwargs
from granite_demo.messages import Controls, Switches, Thinking
from granite_demo.status import ModelStatus

EFFORTS: dict[str, Thinking] = {"none": "off", "low": "low", "high": "full"}
FIELD = "chat_template_kwargs"


def controls_of(body: ChatRequest, status: ModelStatus) -> Controls:
    """The switches that ``body`` asks for. Raises RefusedError for one that this model does not have."""
    kwargs = body.chat_template_kwargs or TemplateKwargs()
    level, name = _level(kwargs), FIELD
    if body.reasoning_effort is not None:
        if level is not None:
            raise RefusedError("reasoning_effort and a thinking level say the same thing twice.", ("reasoning_effort",))
        level, name = EFFORTS[body.reasoning_effort], "reasoning_effort"
    given = kwargs.controls or TemplateControls()
    controls = Controls(level, given.length, given.originality, bool(given.citations), bool(given.hallucinations))
    if status.stage == "ready":
        _check(controls, status.switches, name)
    return controls


def _level(kwargs: TemplateKwargs) -> Thinking | None:
    levels: set[Thinking] = set()
    wanted: Any = kwargs.thinking
    if isinstance(wanted, bool):
        wanted = "full" if wanted else "off"
    if wanted is not None:
        levels.add(wanted)
    if kwargs.low_effort:
        levels.add("low")
    elif kwargs.enable_thinking is not None:
        levels.add("full" if kwargs.enable_thinking else "off")
    if len(levels) > 1 or (kwargs.low_effort and kwargs.enable_thinking is False):
        raise RefusedError("The switches of thinking contradict each other.", (FIELD,))
    return levels.pop() if levels else None


def _check(controls: Controls, switches: Switches, name: str) -> None:
    level = controls.thinking
    if level not in (None, "off", *switches.thinking):
        known = f"It knows {', '.join(switches.thinking)}." if switches.thinking else "It has no thinking to switch."
        raise RefusedError(f"This model does not think at the level {level}. {known}", (name,))
    for control in ("length", "originality", "citations", "hallucinations"):
        if getattr(controls, control) and not getattr(switches, control):
            raise RefusedError(f"This model's chat template does not read {control}.", (FIELD, "controls", control))
