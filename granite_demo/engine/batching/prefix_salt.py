"""Separates the shared prefixes of continuous batching by ``SamplingParams.salt``.

transformers 5.23 finds a block of the cache by a hash of its tokens and of those before it (``compute_block_hash`` in
cache_allocator.py). Here the first tokens of a request are changed for the hash, and only for it, by its salt.
"""

import hashlib
from typing import Any

SALT = "/"
"""Before the salt, in the name of a request."""
SALTED = 4
"""Tokens that are changed. Each is an int32, so that the hash depends on 124 bits of the salt."""


def salted(request_id: str, ids: list[int]) -> list[int]:
    """The tokens from which the hashes for the request are computed."""
    salt = request_id.partition(SALT)[2]
    if not salt:
        return ids
    digest = hashlib.sha256(salt.encode()).digest()
    words = [int.from_bytes(digest[at : at + 4], "little") >> 1 for at in range(0, 4 * SALTED, 4)]
    return [index ^ word for index, word in zip(ids, words, strict=False)] + ids[SALTED:]


def separate_prefixes(cache: Any) -> None:
    """Have ``cache``, a ``PagedAttentionCache``, share blocks only between requests with the same salt."""
    search = cache.search_prefix_match
    cache.search_prefix_match = lambda request_id, ids: search(request_id, salted(request_id, ids))
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = _Marking(allocator.mark_complete_blocks)


class _Marking:
    def __init__(self, mark: Any) -> None:
        self._mark = mark

    def __call__(self, request_id: str, ids: list[int], blocks: int) -> None:
        self._mark(request_id, salted(request_id, ids), blocks)
