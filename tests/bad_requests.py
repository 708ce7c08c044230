"""Requests that are refused wherever they come from: by the API, the page and the command line."""

from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
LONG = "x" * 300_000
USER = {"role": "user", "content": "Hi"}
PARAMETERS = {"type": "object", "properties": {}}
PLAIN: dict[str, dict[str, Any]] = {CHAT: {"messages": [USER]}, COMPLETION: {"prompt": "Once"}}


@dataclass(frozen=True)
class Bad:
    """``fields`` make a good request to ``route`` a bad one; ``param`` is to blame, and ``words`` are said of it.

    ``sampling`` are the same as arguments of SamplingParams, which refuses them in these words, too.
    """

    name: str
    fields: dict[str, Any]
    param: str | None
    words: str = ""
    status: int = 400
    route: str = CHAT
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return {**PLAIN[self.route], **self.fields}


def sampled(name: str, value: Any, words: str, route: str = CHAT) -> Bad:
    kind = type(value).__name__
    shown = f"{value!r}"[:20]
    return Bad(f"{name}={shown} ({kind})", {name: value}, name, words, route=route, sampling={name: value})


SAMPLED = [
    sampled("temperature", -0.1, "Temperature must be between 0 and 2"),
    sampled("temperature", 2.1, "Temperature must be between 0 and 2"),
    sampled("temperature", "0.5", "Temperature must be a number"),
    sampled("temperature", True, "Temperature must be a number"),
    sampled("temperature", nan, "Temperature must be a number"),
    sampled("temperature", inf, "Temperature must be a number"),
    sampled("temperature", [1], "Temperature must be a number"),
    sampled("temperature", 10**400, "Temperature must be between 0 and 2"),
    sampled("temperature", LONG, "Temperature must be a number"),
    sampled("top_p", 0, "Top-p must be above 0"),
    sampled("top_p", 1.5, "Top-p must be between 0 and 1"),
    sampled("top_p", -inf, "Top-p must be a number"),
    sampled("top_k", -1, "Top-k must be between 0"),
    sampled("top_k", 1.5, "Top-k must be a whole number"),
    sampled("top_k", False, "Top-k must be a whole number"),
    sampled("min_p", 2, "Min-p must be between 0 and 1"),
    sampled("min_p", {}, "Min-p must be a number"),
    sampled("max_tokens", 0, "Max new tokens must be between 1"),
    sampled("max_tokens", -5, "Max new tokens must be between 1"),
    sampled("max_tokens", "ten", "Max new tokens must be a whole number"),
    sampled("max_tokens", True, "Max new tokens must be a whole number"),
    sampled("max_tokens", 10**30, "Max new tokens must be between 1"),
    sampled("max_tokens", nan, "Max new tokens must be a whole number", COMPLETION),
    sampled("seed", -1, "Seed must be between 0"),
    sampled("seed", 2**63, "Seed must be between 0"),
    sampled("seed", 0.5, "Seed must be a whole number"),
    sampled("seed", "7", "Seed must be a whole number"),
    sampled("stop", ["a", "b", "c", "d", "e"], "At most 4 stop strings"),
    sampled("stop", "", "A stop string must have 1 to 64 characters"),
    sampled("stop", ["x" * 65], "A stop string must have 1 to 64 characters"),
    sampled("stop", [3], "A stop string must have 1 to 64 characters"),
    sampled("stop", 3, "Stop strings must be a list of texts"),
    sampled("frequency_penalty", 2.5, "Frequency penalty must be between -2 and 2"),
    sampled("presence_penalty", "1", "Presence penalty must be a number"),
    sampled("repetition_penalty", 0, "Repetition penalty must be between 0.1 and 10"),
    sampled("logprobs", 21, "Logprobs must be between 0 and 20", COMPLETION),
    sampled("logprobs", True, "Logprobs must be a whole number", COMPLETION),
]

OTHERS = [
    Bad("no messages", {"messages": []}, "messages"),
    Bad("messages that are no list", {"messages": "Hi"}, "messages"),
    Bad("a message that is no object", {"messages": ["Hi"]}, "messages.0"),
    Bad("too many messages", {"messages": [USER] * 2001}, "messages"),
    Bad(
        "an unknown role",
        {"messages": [{"role": "wizard", "content": "Hi"}]},
        "messages.0",
        "The role of a message must be one of system, user, assistant, tool, not 'wizard'.",
    ),
    Bad(
        "a role that is no text",
        {"messages": [{"role": 3, "content": "Hi"}]},
        "messages.0",
        "role of a message must be a string",
    ),
    Bad("no role", {"messages": [{"content": "Hi"}]}, "messages.0.role", "messages.0.role is missing."),
    Bad(
        "content that is a number",
        {"messages": [{"role": "user", "content": 3}]},
        "messages.0",
        "The content of a message must be a text.",
    ),
    Bad("no content", {"messages": [{"role": "user"}]}, "messages.0", "The content of a message must be a text."),
    Bad(
        "an empty assistant last",
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        "messages",
        "The last message is from the assistant",
    ),
    Bad(
        "an assistant last that is not continued",
        {"messages": [USER, {"role": "assistant", "content": "Ho"}], "continue_final_message": False},
        "messages",
        "its text is continued",
    ),
    Bad("a user last that is continued", {"continue_final_message": True}, "continue_final_message"),
    Bad(
        "a picture",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
        "messages.0.content.0",
        "image_url parts are not supported",
    ),
    Bad(
        "a part that is no object",
        {"messages": [{"role": "user", "content": ["Hi"]}]},
        "messages.0.content.0",
        "Parts without a type",
    ),
    Bad(
        "thinking of a user",
        {"messages": [{**USER, "reasoning_content": "Hm"}]},
        "messages.0",
        "Only a message of the assistant",
    ),
    Bad("an unknown field of a message", {"messages": [{**USER, "mood": "x"}]}, "messages.0.mood", "mood is not"),
    Bad(
        "a tool's answer to no call",
        {"messages": [USER, {"role": "tool", "content": "4", "tool_call_id": "call_1"}]},
        "messages.1.tool_call_id",
        "No earlier message has a tool call with this ID.",
    ),
    Bad("an unknown field", {"best_of_all": 1}, "best_of_all", "best_of_all is not supported here."),
    Bad("a field with an endless name", {"x" * 100_000: 1}, "x" * 119 + "…"),
    Bad("a field of the other route", {"prompt": "Hi"}, "prompt", "prompt is not supported here."),
    Bad("storing", {"store": True}, "store"),
    Bad("storing 0", {"store": 0}, "store", "store: It can only be false here."),
    Bad("one call at a time", {"parallel_tool_calls": False}, "parallel_tool_calls"),
    Bad("calls at once, as a number", {"parallel_tool_calls": 1}, "parallel_tool_calls"),
    Bad("audio", {"modalities": ["audio"]}, "modalities.0"),
    Bad("another model", {"model": "gpt-4"}, "model", "The model 'gpt-4' is not available here", status=404),
    Bad("a model that is a number", {"model": 4}, "model"),
    Bad("five answers", {"n": 5}, "n"),
    Bad("no answers", {"n": 0}, "n"),
    Bad("true answers", {"n": True}, "n"),
    Bad("a stream that is a text", {"stream": "yes"}, "stream"),
    Bad("options of no stream", {"stream_options": {"include_usage": True}}, "stream_options"),
    Bad("two limits", {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    Bad("alternatives without logprobs", {"top_logprobs": 3}, "top_logprobs", "requires logprobs to be true"),
    Bad("too many alternatives", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
    Bad("logprobs that are a number", {"logprobs": 1}, "logprobs"),
    Bad("a bias that is a list", {"logit_bias": [1]}, "logit_bias", "must be an object"),
    Bad("a bias of a word", {"logit_bias": {"hello": 1}}, "logit_bias", "A token id of logit_bias"),
    Bad("a bias too large", {"logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100"),
    Bad("a bias of true", {"logit_bias": {"5": True}}, "logit_bias", "logit_bias must be a number"),
    Bad("too many biases", {"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "the limit is 300"),
    Bad("tools that are no list", {"tools": {"type": "function"}}, "tools"),
    Bad("a tool without a name", {"tools": [{"type": "function", "function": {}}]}, "tools", "Tool 1"),
    Bad(
        "a tool with a bad name",
        {"tools": [{"type": "function", "function": {"name": "a b", "parameters": PARAMETERS}}]},
        "tools",
        "The name of tool 1",
    ),
    Bad(
        "a tool with a bad schema",
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "required": 3}}}]},
        "tools",
        "not a JSON schema",
    ),
    Bad("too many tools", {"tools": [{"name": f"t{n}", "parameters": PARAMETERS} for n in range(129)]}, "tools", "128"),
    Bad(
        "a strict tool",
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": PARAMETERS, "strict": True}}]},
        "tools.0.function.strict",
    ),
    Bad("a call that must come, without tools", {"tool_choice": "required"}, "tool_choice", "No tool of this request"),
    Bad("a choice of tools nobody knows", {"tool_choice": "any"}, "tool_choice", "tool_choice must be none, auto"),
    Bad("a format nobody knows", {"response_format": {"type": "xml"}}, "response_format.type"),
    Bad("a schema that is missing", {"response_format": {"type": "json_schema"}}, "response_format"),
    Bad(
        "a schema that cannot be kept to",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        "response_format",
    ),
    Bad("a pattern too long", {"guided_regex": "x" * 5000}, "guided_regex"),
    Bad("nothing to choose from", {"guided_choice": []}, "guided_choice"),
    Bad("two formats", {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "cannot be used together"),
    Bad("a template's other variable", {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    Bad("thinking of a model without", {"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs", "think"),
    Bad("thinking that is a number", {"chat_template_kwargs": {"thinking": 1}}, "chat_template_kwargs.thinking"),
    Bad("too many documents", {"documents": [{"text": "a"}] * 17}, "documents", "At most 16 documents"),
    Bad("a document without a text", {"documents": [{"title": "a"}]}, "documents.0.text"),
    Bad("no prompt", {"prompt": None}, "prompt", route=COMPLETION),
    Bad("an empty prompt", {"prompt": ""}, "prompt", "The prompt is empty.", route=COMPLETION),
    Bad("no tokens", {"prompt": []}, "prompt", "The prompt is empty.", route=COMPLETION),
    Bad("two prompts", {"prompt": ["a", "b"]}, "prompt", "Several prompts", route=COMPLETION),
    Bad("a token that is none", {"prompt": [1, -1]}, "prompt.1", route=COMPLETION),
    Bad("a token that is true", {"prompt": [True]}, "prompt.0", route=COMPLETION),
    Bad("a suffix for tokens", {"prompt": [1], "suffix": "b"}, "suffix", route=COMPLETION),
    Bad("no tokens to make", {"max_tokens": 0}, "max_tokens", "only together with echo", route=COMPLETION),
    Bad("best of two", {"best_of": 2}, "best_of", route=COMPLETION),
    Bad("an echo of a gap", {"echo": True, "suffix": "b"}, "echo", route=COMPLETION),
]

BAD_REQUESTS = SAMPLED + OTHERS
