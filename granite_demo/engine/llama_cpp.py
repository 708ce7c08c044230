"""The engine over llama.cpp's server: token ids in, token ids out, many requests in one step.

The child process does the work. This side keeps the line of those who wait: all slots share one KV cache, and
llama.cpp ends every running answer when that is full. So a request starts only when its prompt and its longest answer
fit beside those that run.
"""

import asyncio
import json
import logging
import secrets
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import h11

from granite_demo.engine.failures import as_user_error, closed_error
from granite_demo.engine.interleaved.prefix_cache import common
from granite_demo.engine.protocol import Measure, T, answer_limit
from granite_demo.engine.token_stream import TokenStream
from granite_demo.engine.waiting_queue import MAX_WAITING, WaitingQueue
from granite_demo.errors import ContextOverflowError, EngineError, GraniteDemoError, InvalidRequestError
from granite_demo.loading.llama_process import LlamaProcess
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models.gguf_memory import cache_bytes_per_token
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import GGUF
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import Chosen, EngineSetup, EngineStats, Fact, Feature, gigabytes
from granite_demo.types.sampling_params import MAX_ALTERNATIVES, SamplingParams

log = logging.getLogger(__name__)

GREEDY_SAMPLERS = ("penalties", "top_k")
"""With one candidate. llama.cpp's temperature of 0 keeps the whole vocabulary, which took 15 % of the time here."""
RANDOM_SAMPLERS = ("penalties", "top_k", "temperature", "top_p", "min_p")
"""Other engines apply the temperature first. The result is the same, and here it scales fewer candidates."""
RANDOM_SEED = 2**32 - 1
"""What llama.cpp reads as: take any seed."""
RESERVE = 512
"""Tokens of an answer that are reserved when it starts, at most; more are reserved while it is written."""
HALF = 0.5
"""Of the prompt before in a slot: where a new prompt shares more, it continues its conversation."""
RESTARTS = 5
"""Times that a child that ended is started again before the engine gives up."""


UNABLE: tuple[tuple[Feature, str], ...] = (
    ("comparing precisions", "llama.cpp reports single log probabilities, not whole distributions"),
)


class TokenPieces:
    """The bytes of each token, to find tokens that llama.cpp does not report.

    In a stream it reports only the last token of a character that several tokens make up.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._by_piece: dict[bytes, int] = {}
        for index, piece in enumerate(pieces):
            # What llama.cpp does not report ends within a character.
            if piece.decode(errors="replace").encode() != piece:
                self._by_piece.setdefault(piece, index)

    def before(self, last: int, text: bytes, count: int) -> list[int]:
        """The ``count`` tokens that precede ``last`` in ``text``; empty where none fit."""
        piece = self.pieces[last]
        return self._split(text.removesuffix(piece), count) or [] if text.endswith(piece) else []

    def _split(self, text: bytes, count: int) -> list[int] | None:
        if not count:
            return None if text else []
        for length in range(len(text) - count + 1, 0, -1):
            if (index := self._by_piece.get(text[:length])) is not None:
                rest = self._split(text[length:], count - 1)
                if rest is not None:
                    return [index, *rest]
        return None


@dataclass(slots=True, eq=False)
class _Request:
    """A request in the line or in a slot."""

    stream: TokenStream[Any]
    """What its reader gets: its places, then its answer."""
    cost: int
    """Tokens of the cache that are reserved for it."""
    ids: Sequence[int] = ()
    """Of its prompt."""
    salt: str = ""
    """See ``SamplingParams.salt``. Empty: llama.cpp chooses the slot, by its tokens."""
    slot: int = 0
    """Its slot of llama.cpp, where it has a salt."""
    fresh: bool = False
    """Whether the slot has tokens of a request with another salt, which it must not use."""
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class LlamaEngine:
    """An ``Engine`` over one ``LlamaProcess`` at a time."""

    def __init__(
        self,
        process: LlamaProcess,
        start: Callable[[], LlamaProcess],
        vocabulary: TokenPieces,
        context_length: int,
        setup: EngineSetup | None = None,
        max_waiting: int = MAX_WAITING,
        ignore_ends: bool = False,
    ) -> None:
        """``process`` has the model loaded. ``start`` starts another one when it has ended.

        ``context_length``: tokens of one conversation. With ``ignore_ends`` no token ends an answer.
        """
        self.setup = setup or EngineSetup(Chosen(GGUF, ""))
        self.details: tuple[Fact, ...] = ()
        self.unable: tuple[tuple[Feature, str], ...] = UNABLE
        self._process, self._start = process, start
        self._always = {"ignore_eos": True} if ignore_ends else {}
        self._vocabulary, self._context_length = vocabulary, context_length
        self._capacity, self._slots = self._process.options.context, self._process.options.slots
        self._line: WaitingQueue[_Request] = WaitingQueue(max_waiting)
        self._running: list[_Request] = []
        self._last: dict[int, _Request | None] = dict.fromkeys(range(self._slots))
        """The last request with a salt in each slot of llama.cpp."""
        self._salted = False
        """Whether requests have had a salt."""
        self._lock = threading.Lock()
        self._restarting = threading.Lock()
        self._failed: LlamaProcess | None = None
        """The child that broke a connection."""
        self._closed = False
        self._dead: GraniteDemoError | None = None
        self._restarts = 0

    @property
    def facts(self) -> tuple[Fact, ...]:
        """See ``Engine.facts``."""
        return self.setup.facts(self.details)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``."""
        limit = answer_limit(sampling)
        self._check_ids(prompt_ids)
        if len(prompt_ids) >= self._context_length:
            raise ContextOverflowError(len(prompt_ids), self._context_length)

        def work(request: _Request) -> AsyncGenerator[Token]:
            return self._answer(request, prompt_ids, sampling, limit, matcher)

        cost = len(prompt_ids) + min(limit, RESERVE)
        async with aclosing(self._served(cost, work, prompt_ids, sampling.salt)) as items:
            async for item in items:
                yield item

    async def _answer(
        self,
        request: _Request,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        limit: int,
        matcher: Matcher | None,
    ) -> AsyncGenerator[Token]:
        """Answer in parts, each no longer than what is reserved, so that llama.cpp cannot pass it.

        Of the rest of a constraint there is no text: after the first part, each token is a part.
        """
        said: list[int] = []
        while len(said) < limit and (room := self._room(request, len(prompt_ids) + len(said))):
            by_token = matcher is not None and (bool(said) or matcher.lark is None)
            grammar = "" if matcher is None else matcher.next_lark() if by_token else matcher.lark or ""
            length = 1 if by_token else min(limit - len(said), room)
            body = completion_body(prompt_ids, sampling, length, grammar, said)
            before, ended = len(said), False
            body |= {"stream": not by_token, **self._always, **_place(request)}
            async with aclosing(self._pieces(body)) as pieces:
                async for piece in pieces:
                    for token in self._tokens(piece, len(said) - before, sampling.logprobs or 0):
                        if matcher is not None:
                            # llama.cpp answers without a grammar that it cannot read.
                            matcher.follow(token.id)
                        said.append(token.id)
                        yield token
                    ended = piece["stop"] and piece["stop_type"] != "limit"
            if ended or len(said) == before:
                return

    def _tokens(self, piece: Mapping[str, Any], count: int, alternatives: int) -> list[Token]:
        """The tokens of a piece that follows ``count`` others."""
        ids, probabilities = piece["tokens"], piece.get("completion_probabilities") or ()
        missing = piece["tokens_predicted"] - count - len(ids) if ids else 0
        lost = self._vocabulary.before(ids[0], piece["content"].encode(), missing) if missing else []
        found = [token_of(index, entry, alternatives) for index, entry in zip_longest(ids, probabilities)]
        return [*map(Token, lost), *found]

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """See ``Engine.score``. llama.cpp's server gives no logits, so this raises InvalidRequestError."""
        raise InvalidRequestError("llama.cpp gives no logits to compare. Load the model with another engine.")
        yield

    async def score_tokens(self, token_ids: Sequence[int], alternatives: int) -> AsyncGenerator[list[Token] | Queued]:
        """See ``TokenScorer``. llama.cpp reports no log probabilities of a prompt: each token takes a request."""
        self._check_ids(token_ids)
        if len(token_ids) > self._context_length:
            raise ContextOverflowError(len(token_ids), self._context_length)

        async def work(request: _Request) -> AsyncGenerator[list[Token]]:
            for at in range(1, len(token_ids)):
                body = {**scoring_body(token_ids[:at], token_ids[at], alternatives), **_place(request)}
                async with aclosing(self._pieces(body)) as pieces:
                    async for piece in pieces:
                        yield [token_of(token_ids[at], piece["completion_probabilities"][0], alternatives)]

        async with aclosing(self._served(len(token_ids) + 1, work)) as items:
            async for item in items:
                yield item

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        """llama.cpp cuts an id to 32 bits in silence."""
        size = len(self._vocabulary.pieces)
        for index in token_ids:
            if not 0 <= index < size:
                raise InvalidRequestError(f"{index} is not a token id. This model has the ids 0 to {size - 1}.")

    async def _served(
        self, cost: int, work: Callable[[_Request], AsyncGenerator[T]], ids: Sequence[int] = (), salt: str = ""
    ) -> AsyncGenerator[T | Queued]:
        """Yield the places in the line, then what ``work`` yields in a slot.

        The work goes on while nobody reads, so a slow reader holds no slot.
        """
        self._salted = self._salted or bool(salt)
        if self._salted and not salt:
            salt = secrets.token_hex(16)  # a scored text shares with nobody
        request = _Request(TokenStream(asyncio.get_running_loop()), min(cost, self._capacity), list(ids), salt)
        with self._lock:
            self._check_open()
            self._line.join(request)
        task = asyncio.create_task(self._work(request, work))
        try:
            self._admit()
            async with aclosing(request.stream.read()) as items:
                async for item in items:
                    yield item
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _work(self, request: _Request, work: Callable[[_Request], AsyncGenerator[Any]]) -> None:
        try:
            await request.turn.wait()
            async with aclosing(work(request)) as items:
                async for item in items:
                    request.stream.accept(item)
        except Exception as error:
            request.stream.finish(as_user_error(error))
        else:
            request.stream.finish()
        finally:
            with self._lock:
                if request in self._running:
                    self._running.remove(request)
            self._admit()

    def _admit(self) -> None:
        """Give slots to those who wait, as long as they fit, and report their places to the others."""
        with self._lock:
            while request := self._line.take(self._fits):
                # Where the loop is closed, there is no reader left.
                with suppress(RuntimeError):
                    if request.salt:
                        self._give_slot(request)
                    request.stream.loop.call_soon_threadsafe(request.turn.set)
                    self._running.append(request)
        self._line.announce()

    def _give_slot(self, request: _Request) -> None:
        """Choose a slot of llama.cpp: one with the same conversation of the same salt, or the one used longest ago."""
        taken = {other.slot for other in self._running}
        free = [slot for slot in self._last if slot not in taken]  # in the order of their last use

        def shared(slot: int) -> float:
            last = self._last[slot]
            same = last is not None and last.salt == request.salt
            return common(last.ids, request.ids) / max(1, len(last.ids)) if last and same else 0.0

        best = max(free, key=shared)
        request.slot = best if shared(best) > HALF else next((one for one in free if not self._last[one]), free[0])
        last = self._last.pop(request.slot)
        request.fresh = last is None or last.salt != request.salt
        self._last[request.slot] = request

    def _fits(self, request: _Request) -> bool:
        taken = sum(other.cost for other in self._running)
        return len(self._running) < self._slots and taken + request.cost <= self._capacity

    def _room(self, request: _Request, length: int) -> int:
        """How many tokens fit after ``length``: reserves more of the cache for a long answer, where it is free."""
        if length >= request.cost:
            with self._lock:
                free = self._capacity - sum(other.cost for other in self._running)
                request.cost += min(RESERVE, free)
        return min(request.cost, self._context_length) - length

    async def _pieces(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The pieces of an answer, or its only one where ``body`` asks for no stream. Closing it cancels the request.

        Starts a child that has ended again. Raises InvalidRequestError, ContextOverflowError and EngineError.
        """
        self._check_open()
        process = self._process
        if process is self._failed or not process.alive:
            await asyncio.to_thread(self._restart, process)
            process = self._process
        try:
            async with aclosing(process.lines("/completion", body)) as lines:
                async for line in lines:
                    name, _, value = line.partition(b": ")
                    if name not in (b"data", b"error"):
                        value = line
                    if not value.startswith(b"{"):
                        continue
                    piece = json.loads(value)
                    if name == b"error" or "error" in piece:
                        raise _refused(piece)
                    if "prompt_progress" not in piece:
                        yield piece
        except (OSError, h11.RemoteProtocolError) as error:
            self._check_open()
            self._failed = process
            log.error("llama.cpp's process failed: %s", error)
            raise EngineError(
                "llama.cpp stopped during this answer. The text so far is kept. Send the request again."
            ) from error

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()
        if self._dead:
            raise self._dead

    def _restart(self, failed: LlamaProcess) -> None:
        """Replace the ``failed`` child, once for all who wait for it."""
        with self._restarting:
            if self._closed or self._process is not failed:
                return
            log.error("llama.cpp's process ended: %s", failed.reason())
            failed.close()
            if self._restarts >= RESTARTS:
                self._dead = EngineError("llama.cpp stopped too often. Restart the program, or load another model.")
                raise self._dead
            self._restarts += 1
            self._process = self._start()
            if self._closed:
                self._process.close()

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        with self._lock:
            used = sum(request.cost for request in self._running) / self._capacity
            failure = self._dead.user_text if self._dead else ""
            return EngineStats(len(self._running), len(self._line), self._restarts, min(1.0, used), failure)

    def close(self) -> None:
        """See ``Engine.close``."""
        with self._lock:
            self._closed = True
            waiting = self._line.clear()
        for request in waiting:
            request.stream.finish(closed_error())
        self._process.close()


def _refused(reply: Mapping[str, Any]) -> GraniteDemoError:
    """The error of an answer of llama.cpp's server."""
    error = reply.get("error", reply)
    if error.get("type") == "exceed_context_size_error":
        return ContextOverflowError(error["n_prompt_tokens"], error["n_ctx"])
    text = str(error.get("message", error)).strip().rstrip(".")
    return (InvalidRequestError if error.get("code") == 400 else EngineError)(f"llama.cpp refused the request: {text}.")


def _place(request: _Request) -> dict[str, Any]:
    """The slot of the next call for ``request``, and whether the tokens in it can be used."""
    if not request.salt:
        return {}
    fresh, request.fresh = request.fresh, False
    return {"id_slot": request.slot, "cache_prompt": not fresh}


def completion_body(
    prompt_ids: Sequence[int], sampling: SamplingParams, length: int, grammar: str = "", said: Sequence[int] = ()
) -> dict[str, Any]:
    """The request for the ``length`` tokens that follow the prompt and what is ``said``, the answer so far.

    ``grammar`` is the constraint in llguidance's Lark.
    """
    body: dict[str, Any] = {
        "prompt": [*prompt_ids, *said],
        "n_predict": length,
        "stream": True,
        "return_tokens": True,
        # Without it a cancelled prompt is computed to its end.
        "return_progress": True,
        "cache_prompt": True,
        "samplers": list(RANDOM_SAMPLERS if sampling.temperature else GREEDY_SAMPLERS),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k if sampling.temperature else 1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": len(prompt_ids) + len(said) + length,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": [list(pair) for pair in biases(prompt_ids, sampling).items()],
    }
    if sampling.seed is not None:
        body["seed"] = folded_seed(sampling.seed + len(said))
    if sampling.logprobs is not None:
        body["n_probs"] = max(1, min(sampling.logprobs, MAX_ALTERNATIVES))
    if grammar:
        body["grammar"] = f"%llguidance {{}}\n{grammar}"
    return body


def biases(prompt_ids: Sequence[int], sampling: SamplingParams) -> dict[int, float]:
    """The logit bias of each token.

    llama.cpp counts the prompt for the penalties for frequency and presence; these are for the answer. So the bias
    gives back what the prompt costs: the frequency exactly; the presence for good, as its penalty does not add up.
    """
    bias = dict(sampling.logit_bias)
    if sampling.frequency_penalty or sampling.presence_penalty:
        for token, count in Counter(prompt_ids).items():
            cost = sampling.frequency_penalty * count + sampling.presence_penalty
            bias[token] = bias.get(token, 0.0) + cost
    return bias


def scoring_body(prompt_ids: Sequence[int], token: int, alternatives: int) -> dict[str, Any]:
    """A request for the log probability of ``token`` after ``prompt_ids``, which a bias makes the chosen one.

    llama.cpp reports log probabilities from before the bias.
    """
    return {
        "prompt": list(prompt_ids),
        "n_predict": 1,
        "cache_prompt": True,
        "samplers": [],
        "temperature": 0.0,
        "logit_bias": [[token, 1e9]],
        "n_probs": max(1, min(alternatives, MAX_ALTERNATIVES)),
    }


def folded_seed(seed: int) -> int:
    """``seed`` (0 to 2**63 - 1) in the 32 bits that llama.cpp has for it."""
    return seed % RANDOM_SEED


def token_of(index: int, probabilities: Mapping[str, Any] | None, alternatives: int) -> Token:
    """One token with the log probabilities of an entry of ``completion_probabilities``, if there is one."""
    if probabilities is None:
        return Token(index)
    top = tuple((other["id"], other["logprob"], None) for other in probabilities["top_logprobs"][:alternatives])
    return Token(index, probabilities["logprob"], alternatives=top)


def create_llama_engine(loaded: LoadedModel, ignore_ends: bool = False) -> LlamaEngine:
    """The engine over a GGUF file that llama.cpp has loaded. ``loaded.model`` is a ``GgufModel``."""
    model = loaded.model
    setup = EngineSetup(Chosen(GGUF, loaded.source.gguf_because, GGUF.words(model.plan.slots)))
    vocabulary = TokenPieces(model.header.vocabulary.pieces)
    engine = LlamaEngine(model.process, model.start, vocabulary, loaded.context_length, setup, ignore_ends=ignore_ends)
    kind = model.process.options.cache_type
    size = gigabytes(model.plan.tokens * cache_bytes_per_token(model.header, kind))
    reason = "shared by all requests; ended conversations stay in it"
    engine.details = (
        ("KV cache", f"{model.plan.tokens:,} tokens in {kind}, {size}", reason),
        ("Decoding", "llama.cpp", f"{model.header.quantization}, on {model.process.options.threads} threads"),
    )
    return engine
