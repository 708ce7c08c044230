"""The tokenizer of a GGUF file gives the tokens of llama.cpp and has the interface of transformers' tokenizers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from granite_demo.errors import CorruptModelError, InvalidRequestError
from granite_demo.models.gguf_header import read_header
from granite_demo.outputs.structured_output import compile_constraint
from granite_demo.prompts.fim import fim_problem
from granite_demo.prompts.gguf_tokenizer import PROBE_TEXTS, SPLITS, GgufTokenizer, check_with_llama, make_tokenizer
from granite_demo.prompts.render import apply_template, render, render_parts
from granite_demo.prompts.template_features import find_switches
from granite_demo.prompts.tokenizer import Detokenizer, Tokenizer, control_tokens
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import Message
from granite_demo.types.requests import GenerationRequest
from tests.bytetokens import THINKS, real_template
from tests.gguf_files import Metadata, granite, sentence_piece, vocabulary, write
from tests.llama_child import MISSING, LlamaChild

TEMPLATE = (
    "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "<|start_of_role|>assistant<|end_of_role|>"
)


WORDS = "the I'm we'LL don't  \n\n \t 123 4567 1,000.5 foo_bar café ... -- (x) == {} http:// 'S 're xyzzy \r\n"


def tokenizer_of(
    folder: Path, words: Metadata | None = None, beside: Path | None = None, **given: Any
) -> GgufTokenizer:
    return make_tokenizer(read_header(write(folder / "model.gguf", *granite(words=words, **given))), beside)


@pytest.fixture
def tokenizer(tmp_path: Path) -> GgufTokenizer:
    return tokenizer_of(tmp_path, template=TEMPLATE)


def texts() -> list[str]:
    """Letters of all scripts, and words that different splits encode differently."""
    chance = random.Random(0)
    ranges = [(32, 127), (32, 127), (9, 14), (0x80, 0x600), (0x600, 0x3000), (0x3000, 0xA000), (0x1F300, 0x1FA00)]
    words = WORDS.split(" ")
    letters = [
        "".join(chr(chance.randrange(*chance.choice(ranges))) for _ in range(chance.randrange(1, 60)))
        for _ in range(100)
    ]
    return [*PROBE_TEXTS, *letters, *(" ".join(chance.choices(words, k=20)) for _ in range(100))]


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize(
    "way", ["refact", "dbrx", "gpt-2", "smollm", "llama-bpe", "qwen2", "sentence piece", "unmarked"]
)
def test_the_tokens_are_those_of_llama_cpp(tmp_path: Path, way: str) -> None:
    words = sentence_piece() if way == "sentence piece" else vocabulary("dbrx" if way == "unmarked" else way)
    if way == "unmarked":
        end = words["tokenizer.ggml.eos_token_id"]
        words["tokenizer.ggml.token_type"][end] = 1
    tokenizer = tokenizer_of(tmp_path, words)
    several = [
        *texts(),
        " a".join(control_tokens(tokenizer)),
        "".join(control_tokens(tokenizer)),
        "x<|end_of_text|>y",
        "",
        "\n",
    ]
    asked = [{"content": text, "add_special": False, "parse_special": True} for text in several]
    child = LlamaChild(tmp_path / "model.gguf", tokenize=asked)
    assert child.code == 0, child.log[-2000:]
    for text, ids in zip(several, child.tokens, strict=True):
        assert tokenizer(text).input_ids == ids, text


@pytest.mark.parametrize("way", SPLITS)
def test_every_text_is_told_again(tmp_path: Path, way: str) -> None:
    tokenizer = tokenizer_of(tmp_path, pre=way)
    for text in texts():
        ids = tokenizer(text).input_ids
        assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text
        decoder = Detokenizer(tokenizer, keep=tokenizer.all_special_tokens)
        assert "".join(map(decoder.feed, ids)) + decoder.flush() == text


def test_ways_to_split_digits(tmp_path: Path) -> None:
    def pieces(way: str) -> list[str]:
        tokenizer = tokenizer_of(tmp_path, pre=way)
        ids = tokenizer("12345").input_ids
        return [tokenizer.backend_tokenizer.decode([index]) for index in ids]

    assert pieces("refact") == ["1", "2", "3", "4", "5"]
    assert pieces("dbrx") == ["123", "4", "5"]
    assert pieces("gpt-2") == ["123", "4", "5"]
    assert pieces("qwen2") == ["1", "2", "3", "4", "5"]


def test_it_is_what_transformers_makes_of_the_same_parts(tokenizer: GgufTokenizer) -> None:
    named = tokenizer.special_tokens_map
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, clean_up_tokenization_spaces=False, **named
    )
    other.chat_template = TEMPLATE
    several = texts()
    for asked in (several, several[0]):
        ours = tokenizer(asked, add_special_tokens=False, return_offsets_mapping=True)
        theirs = other(asked, add_special_tokens=False, return_offsets_mapping=True)
        assert ours.input_ids == theirs.input_ids == ours["input_ids"]
        assert ours.offset_mapping == theirs.offset_mapping
    assert len(tokenizer) == len(other)
    assert tokenizer.added_tokens_encoder == other.added_tokens_encoder
    assert tokenizer.get_added_vocab() == other.get_added_vocab()
    assert tokenizer.eos_token_id == other.eos_token_id
    assert set(other.all_special_tokens) <= set(tokenizer.all_special_tokens)
    messages = [{"role": "user", "content": "Hi"}]
    assert apply_template(tokenizer, conversation=messages) == other.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def test_control_tokens_and_others_that_are_added(tokenizer: GgufTokenizer) -> None:
    text = "a<|end_of_text|> b</tool_call>"
    ids = tokenizer(text).input_ids
    assert [index for index in ids if index in tokenizer.added_tokens_encoder.values()] == [
        tokenizer.eos_token_id,
        tokenizer.added_tokens_encoder["</tool_call>"],
    ]
    assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True) == "a b</tool_call>"
    assert "</tool_call>" not in tokenizer.all_special_tokens


def test_a_prompt_is_rendered_with_it(tokenizer: GgufTokenizer) -> None:
    typed: Tokenizer = tokenizer
    request = GenerationRequest((Message("user", "Say <|end_of_text|>."),))
    ids = render(typed, request)
    assert ids.count(tokenizer.eos_token_id or 0) == 1
    assert "".join(part.text for part in render_parts(typed, request)) == (
        "<|start_of_role|>user<|end_of_role|>Say <|end_of_text|>.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    )
    assert not fim_problem(typed)
    assert tokenizer.added_tokens_encoder["<|fim_prefix|>"] in render(typed, GenerationRequest(prompt="a", suffix="b"))


def test_the_switches_of_its_template(tmp_path: Path) -> None:
    assert find_switches(tokenizer_of(tmp_path, template=THINKS)).thinking == ("full", "low", "off")
    assert find_switches(tokenizer_of(tmp_path, template="{{ 'x' * 10 ** 10 }}")).thinking == ()


def test_a_real_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, template=real_template("granite-4.0"))
    assert find_switches(tokenizer).tools


def test_a_hostile_template_is_an_error_of_the_request(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, template="{{ 'x' * 10 ** 10 }}")
    with pytest.raises(
        InvalidRequestError, match="rejects this conversation: it requests a value of more than 16,000,000"
    ):
        render(tokenizer, GenerationRequest((Message("user", "Hi"),)))


def test_the_template_for_tools(tmp_path: Path) -> None:
    metadata, tensors = granite(template="plain")
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "with tools"}
    tokenizer = make_tokenizer(read_header(write(tmp_path / "model.gguf", {**metadata, **named}, tensors)))
    messages = [{"role": "user", "content": "Hi"}]
    assert apply_template(tokenizer, conversation=messages) == "plain"
    assert apply_template(tokenizer, conversation=messages, tools=[{}]) == "with tools"


def test_a_constraint_is_kept_to_with_it(tokenizer: GgufTokenizer) -> None:
    end = tokenizer.eos_token_id or 0
    matcher = compile_constraint(tokenizer, Constraint("choice", choices=("yes", "no")), len(tokenizer), {end})
    first = {tokenizer.backend_tokenizer.decode([int(index)]) for index in matcher.allowed().nonzero()[0]}
    assert first == {"y", "n"}


def save(tokenizer: GgufTokenizer, folder: Path) -> None:
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def test_its_own_tokenizer_beside_it(tmp_path: Path, tokenizer: GgufTokenizer) -> None:
    save(tokenizer, tmp_path)
    assert len(tokenizer_of(tmp_path, beside=tmp_path)) == len(tokenizer)


def test_another_models_tokenizer_beside_it(tmp_path: Path, tokenizer: GgufTokenizer) -> None:
    save(tokenizer, tmp_path)
    with pytest.raises(
        CorruptModelError, match=r"tokenizer.json beside model.gguf is of another model: it has \d+ tokens"
    ):
        tokenizer_of(tmp_path, vocabulary(size=2000), tmp_path)
    with pytest.raises(
        CorruptModelError, match="model.gguf and tokenizer.json beside it encode .* differently from token"
    ):
        tokenizer_of(tmp_path, {**vocabulary(), "tokenizer.ggml.pre": "refact"}, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptModelError, match="tokenizer.json beside the GGUF file cannot be read"):
        tokenizer_of(tmp_path, beside=tmp_path)


def test_padding_is_no_other_model(tmp_path: Path, tokenizer: GgufTokenizer) -> None:
    save(tokenizer, tmp_path)
    words = vocabulary()
    words["tokenizer.ggml.tokens"] += ["[PAD1]", "[PAD2]"]
    words["tokenizer.ggml.token_type"] += [5, 5]
    assert len(tokenizer_of(tmp_path, words, tmp_path)) == len(tokenizer) + 2


def test_a_way_to_split_that_is_not_known(tmp_path: Path, tokenizer: GgufTokenizer) -> None:
    words = {**vocabulary(), "tokenizer.ggml.pre": "kimi-k2"}
    with pytest.raises(CorruptModelError, match="The tokenizer type 'kimi-k2' of model.gguf is not supported. Put"):
        tokenizer_of(tmp_path, words)
    save(tokenizer, tmp_path)
    assert tokenizer_of(tmp_path, words, tmp_path)("12").input_ids == tokenizer("12").input_ids


@pytest.mark.parametrize("merges", [["ab"], ["a nothing"]])
def test_a_vocabulary_that_is_damaged(tmp_path: Path, merges: list[str]) -> None:
    with pytest.raises(CorruptModelError, match="The vocabulary in model.gguf cannot be read"):
        tokenizer_of(tmp_path, {**vocabulary(), "tokenizer.ggml.merges": merges})


def test_it_is_compared_with_llama_cpp(tmp_path: Path, tokenizer: GgufTokenizer) -> None:
    check_with_llama("model.gguf", tokenizer, lambda text: tokenizer(text).input_ids)
    other = tokenizer_of(tmp_path, pre="refact", template=TEMPLATE)
    with pytest.raises(CorruptModelError, match=r"model.gguf and llama.cpp encode .* differently from token \d+: \["):
        check_with_llama("model.gguf", tokenizer, lambda text: other(text).input_ids)

    def without_controls(text: str) -> list[int]:
        plain: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        return list(Backend.from_str(json.dumps({**plain, "added_tokens": []})).encode(text).ids)

    with pytest.raises(CorruptModelError, match="differently"):
        check_with_llama("model.gguf", tokenizer, without_controls)
    with pytest.raises(CorruptModelError, match=r"differently from token \d+: \[\] and"):
        check_with_llama("model.gguf", tokenizer, lambda text: [*tokenizer(text).input_ids, 0])
