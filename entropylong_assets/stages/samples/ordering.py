"""The order of contexts (paper, section 3.4): a random permutation, or by the anchors served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from entropylong_assets.stages.samples.groups import Context


def hash_key(seed: int, *names: str) -> bytes:
    """Return a sort key that is uniform over names and the same on every machine and run."""
    return hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=16).digest()


def shuffle(contexts: Iterable[Context], seed: int) -> list[Context]:
    """Return a random permutation, determined by seed, roots and chunks, not by the given order."""
    return sorted(contexts, key=lambda c: (hash_key(seed, c.root_id, c.chunk_id), c.chunk_id))


def sequence(contexts: Iterable[Context]) -> list[Context]:
    """Sort by the first anchor that each context serves, then rank, chunk and root."""
    return sorted(contexts, key=lambda c: (c.first_anchor, c.first_rank, c.chunk_id, c.root_id))


def order_contexts(
    contexts: Iterable[Context], order: Literal["shuffle", "sequence"], seed: int
) -> list[Context]:
    """Return the contexts in the order that `samples.order` names."""
    return shuffle(contexts, seed) if order == "shuffle" else sequence(contexts)
