"""The value of the third stage of opening a model: a model in memory. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from granite_demo.errors import InvalidRequestError
from granite_demo.loading.device import Placement
from granite_demo.loading.source import Source
from granite_demo.models.catalogue import ModelSpec
from granite_demo.models.config import Shape
from granite_demo.models.config_facts import card_of
from granite_demo.models.recommended_sampling import RecommendedSampling, recommended_sampling
from granite_demo.types.messages import Switches
from granite_demo.types.model_status import Fact, MemoryUse, gigabytes

if TYPE_CHECKING:
    from granite_demo.loading.cpu_benchmark import Threads


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with everything that an engine and a prompt need."""

    model: Any
    tokenizer: Any
    source: Source
    placement: Placement
    context_length: int
    """The maximum number of tokens of a prompt and its answer together."""
    eos_ids: frozenset[int]
    """The token IDs that end an answer: those of the tokenizer and of generation_config.json."""
    weight_bytes: int = 0
    differences: tuple[str, ...] = ()
    """The differences between the catalogue and config.json."""
    shape: Shape | None = None
    """The shape in config.json; None for an unknown architecture."""
    memory: MemoryUse | None = None
    threads: "Threads | None" = None
    """The threads of a model on the CPU; None on other devices."""
    switches: Switches = field(default_factory=Switches)
    """The switches of the chat template."""

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return int(self.model.vocabulary if self.source.gguf else self.model.config.vocab_size)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise InvalidRequestError if the model has no embedding for one of these tokens of its tokenizer.

        On a GPU, such a token would end the process.
        """
        largest = max(ids, default=0)
        if largest >= self.vocabulary:
            raise InvalidRequestError(
                f"The token {largest} is not in the model, which has {self.vocabulary:,} tokens. The tokenizer has "
                "more. Use the tokenizer of the same model."
            )

    @property
    def spec(self) -> ModelSpec:
        """The catalogue entry of the model."""
        return self.source.spec

    @property
    def recommended(self) -> RecommendedSampling:
        """The sampling that its makers recommend."""
        return recommended_sampling(self.spec, self.source.folder)

    @property
    def card(self) -> tuple[Fact, ...]:
        """The configuration of the model as rows for the screen, with a sentence about each multiplier of Granite."""
        return card_of(self.shape)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """How the model was loaded, as rows for the screen."""
        rows = [("Model", self.spec.title, self.spec.about), *self.placement.facts]
        if self.threads:
            rows.append(("Threads", str(self.threads.count), self.threads.reason))
        if self.source.gguf_because and not self.source.gguf:
            rows.append(("GGUF file", "not used", self.source.gguf_because))
        if self.source.chosen_because:
            rows.insert(1, ("Chosen", "automatically", self.source.chosen_because))
        if self.source.commit:
            rows.insert(1, ("Commit", self.source.commit, self.spec.repo_id or ""))
        rows.append(("Context", f"{self.context_length:,} tokens", self.placement.reasons.get("context", "")))
        rows.append(("Weights", gigabytes(self.weight_bytes, 2), "bytes of all parameters, scales and buffers"))
        rows.append(("Sampling", self.recommended.words, self.recommended.reason))
        rows += [("Note", "differs", text) for text in self.differences]
        return tuple(rows)
