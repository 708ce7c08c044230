"""Blocks of the cache are shared between requests with the same salt."""

from typing import Any

from transformers.generation.continuous_batching.cache_allocators import cache_allocator

from granite_demo.engine.batching.prefix_salt import SALT, SALTED, salted, separate_prefixes

IDS = list(range(600))


def test_the_salt_changes_the_first_tokens_only() -> None:
    ann, bob = (salted(f"request-1{SALT}{name}", IDS) for name in ("ann", "bob"))
    assert ann == salted(f"request-2{SALT}ann", IDS)
    assert ann[:SALTED] != bob[:SALTED] != IDS[:SALTED]
    assert ann[SALTED:] == bob[SALTED:] == IDS[SALTED:]
    assert salted(f"request-1{SALT}", IDS) == IDS
    assert all(0 <= index < 2**31 for index in ann)
    assert salted(f"request-1{SALT}ann", [7]) != [7]


def test_a_cache_searches_and_marks_with_the_salt() -> None:
    seen: list[tuple[str, str, list[int]]] = []

    class Allocator:
        def mark_complete_blocks(self, request_id: str, ids: list[int], blocks: int) -> None:
            seen.append(("mark", request_id, ids))

    class Cache:
        cache_allocators = {"full": Allocator()}

        def search_prefix_match(self, request_id: str, ids: list[int]) -> int:
            seen.append(("search", request_id, ids))
            return 0

    cache: Any = Cache()
    separate_prefixes(cache)
    name = f"request-1{SALT}ann"
    cache.search_prefix_match(name, IDS)
    cache.cache_allocators["full"].mark_complete_blocks(name, IDS, 1)
    assert seen == [("search", name, salted(name, IDS)), ("mark", name, salted(name, IDS))]


def test_contract_the_hash_of_a_block_is_that_of_its_tokens() -> None:
    digest = cache_allocator.compute_block_hash
    assert digest(None, IDS[:256]) == digest(None, IDS[:256]) != digest(None, salted(f"{SALT}ann", IDS)[:256])
    for name in ("match_prefix_blocks", "mark_complete_blocks"):
        assert "compute_block_hash" in getattr(cache_allocator.CacheAllocator, name).__code__.co_names
