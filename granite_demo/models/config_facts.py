"""The configuration of a model with short explanations, for the Settings tab."""

from granite_demo.models.config import Shape
from granite_demo.types.model_status import Fact

SOURCE = (
    "Granite was trained with the Power scheduler and muP. With these, small and large models have the same optimal "
    "learning rate; the multipliers are a part of muP (arXiv 2408.13359)."
)


def card_of(shape: Shape | None) -> tuple[Fact, ...]:
    """Return rows of (name, value, explanation). There are none if the configuration is unknown."""
    if shape is None:
        return ()
    rows: list[tuple[str, object, str]] = [
        ("Layers", shape.layers, _layers(shape)),
        ("Hidden size", shape.hidden_size, "numbers that represent one token between the layers"),
        ("Attention heads", shape.heads, f"of {shape.head_dim} numbers each"),
        (
            "KV heads",
            shape.kv_heads,
            f"each is shared by {shape.heads // shape.kv_heads} heads, so the cache is smaller",
        ),
        ("Vocabulary", f"{shape.vocab_size:,}", "tokens that the model can read and write"),
        ("Context", f"{shape.context_length:,}", "tokens at most, prompt and answer together"),
    ]
    if shape.experts:
        rows.append(("Experts", shape.experts, f"{shape.experts_per_token} are active for each token"))
    multipliers = (
        ("Embedding multiplier", shape.embedding_multiplier, "scales a token's embedding before the first layer"),
        ("Attention multiplier", shape.attention_multiplier, "scales query times key, in place of 1/sqrt(head size)"),
        (
            "Residual multiplier",
            shape.residual_multiplier,
            "scales the output that each layer adds to the residual stream",
        ),
        ("Logits scaling", shape.logits_scaling, "divides the logits before the softmax"),
    )
    rows += [(name, f"{value:g}", text) for name, value, text in multipliers if value is not None]
    rows.append(("Why multipliers", "muP", SOURCE))
    return tuple((name, str(value), text) for name, value, text in rows)


def _layers(shape: Shape) -> str:
    if not shape.mamba_layers:
        return "each with attention over the whole text"
    return f"{shape.attention_layers} with attention and {shape.mamba_layers} Mamba-2 layers, which need no KV cache"
