"""Finds the features of a chat template by rendering probes with and without each feature."""

import logging
import time
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.outputs.dialects import find_dialect
from granite_demo.prompts.chat_template import switch_values, template_of, variables_of
from granite_demo.prompts.render import render_text
from granite_demo.prompts.tokenizer import Tokenizer
from granite_demo.types.messages import Controls, Document, Message, Switches, Thinking, ToolSpec
from granite_demo.types.requests import GenerationRequest

log = logging.getLogger(__name__)

SYSTEM = (Message("system", "Answer in one sentence."),)
PROBE_QUESTION = (Message("user", "What is written there?"),)
TOOLS = (ToolSpec("probe_tool", "Looks it up.", {"type": "object", "properties": {"key": {"type": "string"}}}),)
DOCUMENTS = (Document("Probe", "The probe is green."),)
GIVEN: dict[str, dict[str, Any]] = {
    "system": {"messages": SYSTEM + PROBE_QUESTION},
    "tools": {"tools": TOOLS},
    "documents": {"documents": DOCUMENTS},
}
"""The parts of a request on which a switch can depend, as arguments of ``GenerationRequest``."""
LEVELS: tuple[Thinking, ...] = ("full", "off", "low")
"""``low`` comes last: if a template does not have that level, it renders like one of the others."""
PROBES = {
    "length": Controls(length="short"),
    "originality": Controls(originality="extractive"),
    "citations": Controls(citations=True),
    "hallucinations": Controls(hallucinations=True),
}
CONFLICT_WORDS = {
    "system": "when a system prompt is set",
    "tools": "when tools are offered",
    "documents": "when documents are given",
    "no documents": "without documents",
}
SWITCHES_SECONDS = 10.0
"""For all probes together, of processor time. Those of Granite take 0.1 s. A load cannot be cancelled meanwhile."""
SWITCH_NAMES = {"hallucinations": "the check for hallucinations"}


def find_switches(tokenizer: Tokenizer) -> Switches:
    """Return the switches of the tokenizer's chat template. Without a usable template, all are off."""
    if not tokenizer.chat_template:
        return Switches()
    try:
        return _Prober(tokenizer).switches()
    except Exception as error:  # templates are code of the checkpoint's author; without switches it can still chat
        log.warning("Cannot find the switches of the chat template: %s", error)
        return Switches()


def unusable_parts(tokenizer: Tokenizer, rows: int) -> tuple[str, ...]:
    """Compare the tokenizer with the ``rows`` of the model's embedding, and its chat template with a question.

    Return a sentence for each problem. A template that loses the question is removed from the tokenizer, because an
    answer would be about nothing: the model then only continues text.
    """
    found = []
    if len(tokenizer) > rows:
        found.append(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model has {rows:,}. A prompt with one of the others "
            "is refused."
        )
    if tokenizer.chat_template and _loses_question(tokenizer):
        tokenizer.chat_template = None
        found.append(
            "The chat template is not used, because it leaves out the question. It may be for messages with pictures, "
            "or damaged. Use the template of the same model."
        )
    return tuple(found)


def _loses_question(tokenizer: Tokenizer) -> bool:
    try:
        return PROBE_QUESTION[0].content not in render_text(tokenizer, GenerationRequest(messages=PROBE_QUESTION))
    except InvalidRequestError:
        return False  # each chat then gets this error


class _Prober:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._until = time.thread_time() + SWITCHES_SECONDS

    def switches(self) -> Switches:
        dialect = find_dialect(template_of(self._tokenizer)).name
        base = self._text()
        if base is None:
            return Switches(dialect=dialect)
        levels = self._levels(base)
        probes = {name: probe for name, probe in PROBES.items() if self._best(probe) > 0}
        if len(levels) > 1:
            other = next(level for level in levels if self._text(controls=Controls(thinking=level)) != base)
            probes["thinking"] = Controls(thinking=other)
        return Switches(
            thinking=levels,
            **{name: name in probes for name in PROBES},
            tools=self._text(**GIVEN["tools"]) not in (base, None),
            documents=self._text(**GIVEN["documents"]) not in (base, None),
            conflicts=tuple((name, cause) for name, probe in sorted(probes.items()) for cause in self._causes(probe)),
            dialect=dialect,
        )

    def _text(self, **given: Any) -> str | None:
        if time.thread_time() > self._until:
            raise TimeoutError(f"they take more than {SWITCHES_SECONDS:g} seconds")
        try:
            return render_text(self._tokenizer, GenerationRequest(**{"messages": PROBE_QUESTION, **given}))
        except InvalidRequestError:
            return None  # for example, the template accepts no system message

    def _levels(self, base: str) -> tuple[Thinking, ...]:
        texts: dict[str, Thinking] = {}
        variables = variables_of(template_of(self._tokenizer))
        nothing = switch_values(Controls(), variables)
        for level in LEVELS:
            controls = Controls(thinking=level)
            text = self._text(controls=controls)
            if text is not None and switch_values(controls, variables) != nothing:
                texts.setdefault(text, level)
        if len(texts) < 2:
            return ()
        rising = sorted(texts.values(), key=("full", "low", "off").index)
        return tuple(sorted(rising, key=lambda level: level != texts.get(base)))

    def _effect(self, probe: Controls, **given: Any) -> int | None:
        """Return how many characters ``probe`` adds or removes, at least 1 for any change. None: no prompt."""
        without, with_it = self._text(**given), self._text(**given, controls=probe)
        if without is None or with_it is None:
            return None
        return 0 if with_it == without else max(1, abs(len(with_it) - len(without)))

    def _best(self, probe: Controls) -> int:
        return max(self._effect(probe) or 0, self._effect(probe, **GIVEN["documents"]) or 0)

    def _causes(self, probe: Controls) -> list[str]:
        """Return the conditions that reduce the effect of ``probe``, for example to its name without an instruction."""
        alone, best = self._effect(probe), self._best(probe)
        needed = GIVEN["documents"] if alone is not None and alone < best else {}
        causes = []
        for cause, given in GIVEN.items():
            effect = self._effect(probe, **{**needed, **given})
            if effect is not None and effect < best:
                causes.append(cause)
        return [*causes, "no documents"] if needed else causes


def reasons(switches: Switches, *, system: bool, tools: bool, documents: bool) -> dict[str, str]:
    """Return a sentence for each switch that has no effect now, by the name of the switch."""
    now = {"system": system, "tools": tools, "documents": documents, "no documents": not documents}
    found: dict[str, str] = {}
    for switch, cause in switches.conflicts:
        if now.get(cause):
            found.setdefault(
                switch, f"This model's template ignores {SWITCH_NAMES.get(switch, switch)} {CONFLICT_WORDS[cause]}."
            )
    return found
