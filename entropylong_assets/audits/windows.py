"""Windows of the long-range audit: a root and its contexts as a sample lays them out.

A window is `[BOS?, contexts, root]`, without filler, from the first context to the end of the root.
Legend: T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.key_tokens import is_key_token
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.samples.packing import Framing, lay_out
from entropylong_assets.stages.samples.settings import SampleSettings


@dataclass(frozen=True, eq=False)
class Span:
    """A context and the positions of its tokens in a window: start inclusive, end exclusive."""

    context: Context
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Window:
    """A root with its contexts, as one sequence."""

    recipe: str
    group: Group
    token_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    """Position in token_ids of each token of the root, [T]."""
    spans: tuple[Span, ...]

    @property
    def context_tokens(self) -> int:
        return sum(span.end - span.start for span in self.spans)


def make_window(recipe: str, group: Group, framing: Framing, settings: Settings) -> Window:
    """Lay out the group as its sample does, without padding and filler."""
    total = len(framing.root_ids(group)) + framing.bos_tokens
    total += sum(len(context.token_ids) for context in group.chosen)
    # The other settings concern samples of several groups. The window may be shorter than a sample.
    samples = SampleSettings(order=settings.samples.order, fill="verified_only")
    samples = samples.model_copy(update={"tokens": total})
    token_ids: list[int] = []
    places: list[int] = []
    spans: list[Span] = []
    for segment in lay_out([group], framing, samples, settings.seed):
        start = len(token_ids)
        token_ids.extend(int(i) for i in segment.token_ids)
        if segment.role == "root":
            places.extend(range(start, len(token_ids)))
        elif segment.context is not None:
            spans.append(Span(segment.context, start, len(token_ids)))
    return Window(
        recipe,
        group,
        np.array(token_ids, np.int64),
        np.array(places[: len(group.token_ids)], np.int64),
        tuple(spans),
    )


def random_tokens(contexts: Sequence[Context], length: int) -> NDArray[np.int64] | None:
    """Return the first `length` tokens of the concatenated passages; None if there are fewer."""
    joined = [int(i) for context in contexts for i in context.token_ids]
    return np.array(joined[:length], np.int64) if len(joined) >= length else None


def replace_contexts(window: Window, filling: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the window's tokens, with those of all contexts replaced in order by `filling`."""
    token_ids, used = window.token_ids.copy(), 0
    for span in window.spans:
        length = span.end - span.start
        token_ids[span.start : span.end] = filling[used : used + length]
        used += length
    return token_ids


def root_request(window: Window, token_ids: NDArray[np.int64]) -> ScoringRequest:
    """Request the scores of every token of the root that has a prefix."""
    positions = window.places[window.places >= 1]
    return ScoringRequest(token_ids, positions)


def key_tokens(short_T: NDArray[np.float32], long_T: NDArray[np.float32]) -> int:
    """Count the tokens whose surprisal drops by more than 2 nats, to less than 2 nats.

    short_T, long_T: surprisals in a short and in the long window. NaN counts as no key token.
    """
    return int(is_key_token(short_T, long_T).sum())


def segment_pairs(
    window: Window, length: int, count: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sample pairs (context segment, root segment) of `length` tokens each, by hash.

    The context segment precedes the root segment in the window.
    """
    root = window.token_ids[window.places]
    starts = [s for span in window.spans for s in range(span.start, span.end - length + 1, length)]
    root_starts = list(range(0, len(root) - length + 1, length))
    pairs = [(s, r) for s in starts for r in root_starts if window.places[r] > s]
    ranked = sorted(
        pairs, key=lambda p: hash_key(seed, window.group.root_id, window.recipe, str(p))
    )
    return [(window.token_ids[s : s + length], root[r : r + length]) for s, r in ranked[:count]]
