"""The stream from the model's thread to the event loop."""

import asyncio
import threading

import pytest

from granite_demo.engine.failures import as_user_error
from granite_demo.engine.token_stream import Cancelled, TokenStream
from granite_demo.errors import EngineError, InvalidRequestError
from granite_demo.types.logprobs import Token


async def test_tokens_from_another_thread_arrive_in_order() -> None:
    stream: TokenStream[Token] = TokenStream(asyncio.get_running_loop())

    def work() -> None:
        for token in range(100):
            stream.put(Token(token))
        stream.finish()

    thread = threading.Thread(target=work)
    thread.start()
    assert [token async for token in stream.read()] == [Token(number) for number in range(100)]
    thread.join()


async def test_an_error_is_raised_after_the_tokens_before_it() -> None:
    stream: TokenStream[Token] = TokenStream(asyncio.get_running_loop())
    stream.put(Token(1))
    stream.finish(EngineError("broken"))
    seen = []
    with pytest.raises(EngineError, match="broken"):
        async for token in stream.read():
            seen.append(token)
    assert seen == [Token(1)]


async def test_a_cancelled_stream_accepts_no_tokens() -> None:
    stream: TokenStream[Token] = TokenStream(asyncio.get_running_loop())
    stream.cancel()
    with pytest.raises(Cancelled):
        stream.put(Token(1))
    stream.finish()
    assert [token async for token in stream.read()] == []


def test_a_stream_whose_loop_is_closed_counts_as_cancelled() -> None:
    loop = asyncio.new_event_loop()
    stream: TokenStream[Token] = TokenStream(loop)
    loop.close()
    with pytest.raises(Cancelled):
        stream.put(Token(1))
    stream.finish()  # it ends without an exception


def test_errors_for_users() -> None:
    assert as_user_error(Cancelled()) is None
    known = InvalidRequestError("known")
    assert as_user_error(known) is known
    memory = as_user_error(MemoryError())
    assert isinstance(memory, EngineError)
    assert "memory" in memory.user_text
    on_a_cpu = as_user_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    assert on_a_cpu is not None
    assert on_a_cpu.user_text == memory.user_text
    other = as_user_error(KeyError("secret"))
    assert isinstance(other, EngineError)
    assert "secret" not in other.user_text
