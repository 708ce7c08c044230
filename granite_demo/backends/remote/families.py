"""What a model of another server can do, by its name: its template cannot be looked into from here. A table."""

import re
from dataclasses import dataclass, replace

from granite_demo.outputs.dialects import DIALECTS, PLAIN, Dialect
from granite_demo.types.messages import Switches

GRANITE_3 = frozenset({"thinking", "controls"})
LISTS = tuple((name, cause) for name in ("citations", "hallucinations") for cause in ("system", "no documents"))
CONFLICTS = (*LISTS, ("thinking", "system"), ("thinking", "tools"), ("thinking", "documents"))

SWITCHES_3_3 = Switches(
    thinking=("off", "full"),
    length=True,
    originality=True,
    citations=True,
    hallucinations=True,
    tools=True,
    documents=True,
    conflicts=CONFLICTS,
    dialect="3.3",
)


@dataclass(frozen=True, slots=True)
class Family:
    """A row: ``pattern`` is searched for in the lower-cased name."""

    pattern: str
    switches: Switches
    variables: frozenset[str] = frozenset()
    """What its chat template reads, as ``template_inputs.switch_values`` wants it."""
    opens_reasoning: bool = False
    """Whether the prompt itself opens the thinking, so that an answer that nobody parses begins within it."""

    def dialect(self, tools: bool, raw: bool) -> Dialect:
        """What its answers are read by, where the server has left the markers in them."""
        if raw:
            return PLAIN
        if self.switches.dialect != "plain":
            return DIALECTS[self.switches.dialect]
        return ANY_WITH_TOOLS if tools else ANY


ANY = Dialect("any", reasoning_open=("<think>",), reasoning_close=("</think>",))
"""The most common marks of thinking. Nothing is taken for a call where no tools were offered."""
ANY_WITH_TOOLS = DIALECTS["4.2"]

FAMILIES = (
    Family(
        r"granite-?4[.-]2",
        Switches(thinking=("full", "low", "off"), tools=True, documents=True, dialect="4.2"),
        frozenset({"enable_thinking", "low_effort"}),
        opens_reasoning=True,
    ),
    Family(
        r"granite-?3[.-]3",
        SWITCHES_3_3,
        GRANITE_3,
    ),
    Family(
        r"granite-?3[.-]2",
        replace(SWITCHES_3_3, dialect="3.2"),
        GRANITE_3,
    ),
    Family(r"granite-?3[.-][01]", Switches(tools=True, documents=True, dialect="3.2")),
    Family(r"granite-?4", Switches(tools=True, documents=True, dialect="4.0")),
    Family(r"", Switches(tools=True, documents=True)),
)


def find_family(name: str) -> Family:
    """The first row whose pattern is in ``name``: a repository, a file or an alias such as granite3.3:8b."""
    return next(row for row in FAMILIES if re.search(row.pattern, name.lower()))
