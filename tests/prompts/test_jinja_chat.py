"""Chat templates give the same texts as with transformers, and hostile templates are stopped."""

import subprocess
import sys
import time
from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from transformers.utils import chat_template_utils

from granite_demo.prompts import jinja_chat
from granite_demo.prompts.jinja_chat import apply_chat_template
from tests.bytetokens import THINKS

HI = [{"role": "user", "content": "Hi, <b>Zoë</b> 🙂"}]
THOUGHT = [*HI, {"role": "assistant", "content": "Ho", "thinking": "Hm."}, {"role": "user", "content": "So?"}]
REASONED = [*HI, {"role": "assistant", "content": "Ho", "reasoning_content": "Hm."}]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"where": "Zürich", "n": [1, None, True]}}}
CALLED = [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "sun"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]

SAME = {
    "a block takes its line": "{% for m in messages %}\n  {% if m.role %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
    "white space taken away": "a  {%- for m in messages -%}  {{ m.role }}  {%- endfor +%}\n b ",
    "break and continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% break %}{% endfor %}",
    "JSON": "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0] | tojson(sort_keys=true) }}",
    "JSON of other letters": "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "what a model wrote": "{% for m in messages %}{% generation %}\n{{ m.content }}\n{% endgeneration %}{% endfor %}",
    "a name inside of it": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "a namespace": "{% set s = namespace(n=0) %}{% for m in messages %}{% set s.n = s.n + 1 %}{% endfor %}{{ s.n }}",
    "dict": "{{ dict(a=1, b=messages[0].role) | tojson }}{{ dict.fromkeys(['x'], 1) | tojson }}",
    "a macro": "{% macro f(m) %}{{ m.role ~ ': ' ~ m.content }}{% endmacro %}{{ f(messages[0]) }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ tools | selectattr('type') | list | length }}",
    "methods": "{{ messages[0].role.replace('s', 'o').split('o')[0].strip() ~ '%s-%d' % ('a', 2) ~ '{}'.format(3) }}",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ nothing }}{% if nothing is defined %}x{% endif %}",
    "none and numbers": "{{ none }}{{ 2 * 3 }}{{ 'ab' * 3 }}{{ 7 // 2 }}{{ 2 ** 5 }}{{ [1] + [2] }}{{ 1.5 * 2 }}",
    "tests": "{% if messages is iterable and messages[0] is mapping and messages[0].role is string %}yes{% endif %}",
    "a recursive loop": "{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
    "set as a block": "{% set x %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}{{ x | trim | upper }}",
    "reasoning": "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{% endfor %}",
    "a loop's else": "{% for d in documents or [] %}{{ d }}{% else %}no documents{% endfor %}",
    "thinking": THINKS,
}


@pytest.mark.parametrize("messages", [HI, THOUGHT, REASONED, CALLED], ids=["hi", "thought", "reasoned", "called"])
@pytest.mark.parametrize("template", SAME.values(), ids=SAME)
def test_the_text_is_that_of_transformers(template: str, messages: list[dict[str, Any]]) -> None:
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    named: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
    given: dict[str, Any] = {"tools": TOOLS, "documents": None, "add_generation_prompt": True, **named}
    rendered: Any = chat_template_utils.render_jinja_template([plain], chat_template=template, **given)
    assert apply_chat_template(template, messages, **given) == rendered[0][0]


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('Not so.') }}",
        "{{ messages[0].content.__class__.__mro__[1] }}",
        "{{ messages.append(1) }}",
        "{{ messages[5].role.x }}",
        "{{ messages[0] + 1 }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{% for m in messages %}",
        "{{ range(100001) }}",
    ],
)
def test_what_transformers_refuses_is_refused_with_the_same_error(template: str) -> None:
    with pytest.raises((TemplateError, TypeError, OverflowError)) as theirs:
        chat_template_utils.render_jinja_template([HI], chat_template=template)
    with pytest.raises(theirs.type) as ours:
        apply_chat_template(template, HI)
    if "namespace" not in str(theirs.value):
        assert str(ours.value) == str(theirs.value)


def test_the_date_is_today() -> None:
    assert apply_chat_template("{{ strftime_now('%Y-%m-%d') }}", HI) == datetime.now().strftime("%Y-%m-%d")


def test_no_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="The conversation has no message"):
        apply_chat_template("", [])


BIG = "{% set a = 'x' * 1000000 %}"
LISTS = f"{BIG}{{% set b = [a, a, a, a, a, a, a, a, a, a] %}}{{% set c = [b, b, b, b] %}}"
NAMESPACE = "{% set ns = namespace(x=FIRST) %}{% for i in range(100) %}{% set ns.x = NEXT %}{% endfor %}"


def grows(first: str, following: str) -> str:
    return NAMESPACE.replace("FIRST", first).replace("NEXT", following)


SLOW = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "nested loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a chain of filters": "{% for a in range(100000) %}{{ range(100000) | map('string') | list | length }}{% endfor %}",
}
LARGE = {
    "repeated, at once": "{{ 'x' * 10 ** 10 }}",
    "repeated": "{% set n = 10 ** 10 %}{{ n * 'x' }}",
    "a list repeated": "{{ [1] * 10 ** 9 }}",
    "powers": grows("3", "ns.x ** 3"),
    "squares": grows("3", "ns.x * ns.x"),
    "joined twice": grows("'xx'", "ns.x ~ ns.x"),
    "added twice": grows("'xx'", "ns.x + ns.x"),
    "a list added twice": grows("[1]", "ns.x + ns.x"),
    "replaced": BIG + "{{ a | replace('x', a) }}",
    "replaced by a method": BIG + "{{ a.replace('x', a) }}",
    "nothing replaced": BIG + "{{ a.replace('', a) }}",
    "joined": BIG + "{{ range(100000) | list | join(a) }}",
    "joined from a generator": BIG + "{{ range(100000) | map('string') | join(a) }}",
    "joined by a method": BIG + "{{ a.join(a) }}",
    "letters joined": BIG + "{{ a | join(a) }}",
    "centered": "{{ 'x'.center(10 ** 9) }}",
    "centered by a filter": "{{ 'x' | center(1000000000) }}",
    "filled with zeros": "{{ '1'.zfill(10 ** 9) }}",
    "made wide one by one": "{{ range(100000) | map('center', 100000) | list | length }}",
    "a wide format": "{{ '{:>1000000000}'.format(1) }}",
    "a format of a width": "{{ '{:>{w}}'.format(1, w=10 ** 9) }}",
    "a wide %": "{{ '%1000000000d' % 1 }}",
    "a % of a width": "{{ '%*d' % (10 ** 9, 1) }}",
    "a wide filter": "{{ '%1000000000d' | format(1) }}",
    "one value in many places": BIG + "{{ ('{0}' * 100000).format(a) }}",
    "indented": "{% set a = '\\n' * 1000000 %}{{ a | indent(900000) }}",
    "indented by a text": BIG + "{{ ('\\n' * 1000000) | indent(a) }}",
    "indented JSON": "{{ messages | tojson(indent=100000000) }}",
    "one text many times as JSON": LISTS + "{{ c | tojson }}",
    "one text many times written": LISTS + "{{ c }}",
    "one text many times as a text": LISTS + "{{ (c | string) | length }}",
    "written many times": BIG + "{% for i in range(100) %}{{ a }}{% endfor %}",
    "written many times in a block": BIG + "{% set x %}{% for i in range(99) %}{{ a }}{% endfor %}{% endset %}",
    "text of the template": "{% set x %}{% for i in range(99999) %}" + "y" * 10000 + "{% endfor %}{% endset %}",
    "slices": "{{ range(10) | slice(10 ** 9) | list | length }}",
    "batches": "{{ range(10) | batch(10 ** 9, 'x') | list | length }}",
    "lists added up": "{{ [[1], [2]] | sum(start=[]) }}",
    "translated": "{{ 'a'.translate({97: 'b'}) }}",
    "tabs": "{{ 'a'.expandtabs(1000000) }}",
    "a long template": "x" * 200_001,
}


@pytest.mark.parametrize("template", SLOW.values(), ids=SLOW)
def test_what_takes_too_long_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_chat, "RENDER_SECONDS", 0.3)
    start = time.thread_time()
    with pytest.raises(SecurityError, match="it needs more than 0.3 seconds"):
        apply_chat_template(template, HI)
    assert time.thread_time() - start < 2


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_what_grows_too_large_is_stopped_before(template: str) -> None:
    start = time.thread_time()
    with pytest.raises(SecurityError, match=r"it (requests|writes|adds|has)|unsafe"):
        apply_chat_template(template, HI)
    assert time.thread_time() - start < 3


def test_the_processor_time_of_one_prompt_is_not_that_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_chat, "RENDER_SECONDS", 0.2)
    with pytest.raises(SecurityError):
        apply_chat_template(SLOW["nested loops"], HI)
    assert apply_chat_template("{% for m in messages %}{{ m.role }}{% endfor %}", HI) == "user"


@pytest.mark.parametrize("template", ["{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{% if %}", "{{ lipsum() }}"])
def test_what_cannot_be_read_is_an_error(template: str) -> None:
    with pytest.raises((TemplateError, RecursionError)):
        apply_chat_template(template, HI)


def test_a_long_conversation_is_well_within_the_bounds() -> None:
    messages = [{"role": "user", "content": "x" * 1000}] * 2000
    template = "{% for m in messages %}{{ m.role + ': ' + m.content | trim ~ '\n' }}{% endfor %}{{ tools | tojson }}"
    assert len(apply_chat_template(template, messages)) > 2_000_000


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, granite_demo.prompts.render, granite_demo.prompts.template_features, "
        "granite_demo.prompts.gguf_tokenizer, granite_demo.models.gguf_memory, granite_demo.outputs.structured_output; "
        "print({'torch', 'transformers', 'accelerate', 'gguf', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
