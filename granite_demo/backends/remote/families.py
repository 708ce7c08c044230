"""A table of what a model on another server can do, by its name. Its chat template is not available here."""

import re
from dataclasses import dataclass, replace

from granite_demo.outputs.dialects import DIALECTS, PLAIN, THINK, Dialect
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
    """A row of the table. ``pattern`` is a regular expression that is searched in the lower-case name."""

    pattern: str
    switches: Switches
    variables: frozenset[str] = frozenset()
    """The variables that its chat template reads, for ``chat_template.switch_values``."""
    opens_reasoning: bool = False
    """Whether the prompt opens the thinking.

    If the server does not parse it, the answer then starts in the thinking.
    """

    def dialect(self, tools: bool, raw: bool) -> Dialect:
        """Return the dialect to parse answers in which the server left the markers."""
        if raw:
            return PLAIN
        if self.switches.dialect != "plain":
            return DIALECTS[self.switches.dialect]
        return ANY_WITH_TOOLS if tools else ANY


ANY = Dialect("any", marks=THINK)
"""The most common markers of thinking. Without tools in the request, no text is parsed as a tool call."""
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
    """Return the first row whose pattern matches ``name``: a repository, a file, or an alias such as granite3.3:8b."""
    return next(row for row in FAMILIES if re.search(row.pattern, name.lower()))
