"""Groups into samples of one exact length.

A sample is `[BOS?] C_1, C_2, ..., D, ...`: contexts as they were scored (separator included), roots
with the separator behind them, padding at the end. Nothing is ever cut. Groups are packed by
best-fit decreasing over root and verified contexts, so that a sample holds as many dependencies
as it can; hard negatives only fill what is left.

Share of tokens that are not padding, by `benchmarks/packing_utilisation.py` (131,072 tokens,
roots of 256-4,096 tokens, 46 verified contexts and 100 hard negatives of 64-512 tokens a root):

    roots a shard   samples   verified_only             hard_negatives
        20              3     0.777 (full ones 0.930)   1.000
       200             24     0.972 (0.981)             1.000
     2,000            242     0.977 (0.980)             1.000

The last sample of a shard is not full under `verified_only`: few large shards waste less.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from entropylong_assets.settings.model import SampleSettings
from entropylong_assets.stages.samples.groups import Context, Group, SampleError, TokenIds
from entropylong_assets.stages.samples.ordering import hash_key, order_contexts

NO_DEPENDENCY = "no_verified_dependency"
NO_CONTEXT_FITS = "no_context_fits"
GROUP_TOO_LARGE = "group_too_large"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was not packed: a context, or a whole root where `chunk_id` is None."""

    root_id: str
    chunk_id: str | None
    reason: str
    n_dependencies: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A run of tokens of one role. `context` and `group` name what it was made from."""

    role: str
    token_ids: TokenIds
    group: Group | None = None
    context: Context | None = None


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Tokens that stand around contexts and roots; the same that they were scored with."""

    bos_id: int | None
    separator_ids: tuple[int, ...]
    pad_id: int

    @property
    def bos_tokens(self) -> int:
        return 0 if self.bos_id is None else 1

    def root_ids(self, group: Group) -> TokenIds:
        """Tokens of a root's segment."""
        return np.concatenate([group.token_ids, np.array(self.separator_ids, np.uint32)])


def _n_tokens(contexts: Sequence[Context]) -> int:
    return sum(len(context.token_ids) for context in contexts)


def size_of(group: Group, framing: Framing) -> int:
    """Tokens of a group without its hard negatives."""
    return len(group.token_ids) + len(framing.separator_ids) + _n_tokens(group.chosen)


def fit_group(
    group: Group, framing: Framing, sample_tokens: int
) -> tuple[Group | None, list[Dropped]]:
    """The group with as many verified contexts as one sample holds, and what it gave up.

    Contexts are taken by worth, the largest first, as far as each fits whole: the lowest gains
    go. Raises SampleError where the root alone is longer than a sample.
    """
    total = sum(len(context.dependencies) for context in group.chosen)
    root_tokens = len(group.token_ids) + len(framing.separator_ids)
    room = sample_tokens - framing.bos_tokens - root_tokens
    if room < 0:
        raise SampleError(
            f"root {group.root_id}: {root_tokens + framing.bos_tokens} tokens with separator and "
            f"BOS, a sample has {sample_tokens}; raise samples.tokens or lower "
            "corpus.root_max_tokens"
        )

    def gone(context: Context | None, reason: str, n: int) -> Dropped:
        chunk_id = None if context is None else context.chunk_id
        return Dropped(root_id=group.root_id, chunk_id=chunk_id, reason=reason, n_dependencies=n)

    if not group.chosen:
        return None, [gone(None, NO_DEPENDENCY, 0)]
    kept, given_up = [], []
    for context in sorted(group.chosen, key=lambda c: (-c.worth, c.chunk_id)):
        if len(context.token_ids) <= room:
            room -= len(context.token_ids)
            kept.append(context)
        else:
            given_up.append(gone(context, GROUP_TOO_LARGE, len(context.dependencies)))
    if not kept:
        return None, [gone(None, NO_CONTEXT_FITS, total)]
    return replace(group, chosen=tuple(kept)), given_up


def assign(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of items by bin: best-fit decreasing. Every size is at most `capacity`.

    Ties go by index, so that the result depends on the sizes' order alone.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect_left(free, (sizes[item], -1))
        if place == len(free):
            bins.append([])
            left, chosen = capacity, len(bins) - 1
        else:
            left, chosen = free.pop(place)
        bins[chosen].append(item)
        insort(free, (left - sizes[item], chosen))
    return bins


def choose_negatives(groups: Sequence[Group], room: int) -> list[Context]:
    """Hard negatives of a sample's roots that fit whole into `room` tokens, most similar first.

    A passage that already stands in the sample is not put there again.
    """
    present = {context.chunk_id for group in groups for context in group.chosen}
    candidates = (context for group in groups for context in group.negatives)
    chosen = []
    for context in sorted(candidates, key=lambda c: (-c.similarity, c.chunk_id, c.root_id)):
        if len(context.token_ids) <= room and context.chunk_id not in present:
            present.add(context.chunk_id)
            room -= len(context.token_ids)
            chosen.append(context)
    return chosen


def cut_up(
    group: Group, fillers: Sequence[Context], framing: Framing, settings: SampleSettings, seed: int
) -> Iterator[Segment]:
    """Fillers, then the root piece by piece, each with its contexts behind it (NExtLong)."""

    def segments(contexts: Sequence[Context]) -> Iterator[Segment]:
        for context in order_contexts(contexts, settings.order, seed):
            yield Segment(
                role=context.role, token_ids=context.token_ids, group=group, context=context
            )

    yield from segments(fillers)
    root_ids, step = framing.root_ids(group), group.piece_tokens or len(group.token_ids)
    starts = range(0, len(group.token_ids), step)
    for start in starts:
        last = start == starts[-1]
        end = len(root_ids) if last else start + step
        yield Segment(role="root", token_ids=root_ids[start:end], group=group)
        yield from segments(
            [c for c in group.chosen if start <= c.first_anchor and (last or c.first_anchor < end)]
        )


def lay_out(
    groups: Sequence[Group], framing: Framing, settings: SampleSettings, seed: int
) -> list[Segment]:
    """The segments of one sample, exactly `settings.tokens` tokens long."""
    room = settings.tokens - framing.bos_tokens - sum(size_of(group, framing) for group in groups)
    assert room >= 0, "groups don't fit their sample"
    fill = settings.fill == "hard_negatives"
    negatives = choose_negatives(groups, room) if fill else []
    room -= _n_tokens(negatives)

    by_id = {group.root_id: group for group in groups}

    def blocks(members: Sequence[Group]) -> Iterator[Segment]:
        """Contexts of these groups in their order, then their roots."""
        ids = {group.root_id for group in members}
        contexts = [context for group in members for context in group.chosen]
        contexts += [context for context in negatives if context.root_id in ids]
        for context in order_contexts(contexts, settings.order, seed):
            yield Segment(
                role=context.role,
                token_ids=context.token_ids,
                group=by_id[context.root_id],
                context=context,
            )
        for group in members:
            yield Segment(role="root", token_ids=framing.root_ids(group), group=group)

    segments = []
    if framing.bos_id is not None:
        segments.append(Segment(role="bos", token_ids=np.array([framing.bos_id], np.uint32)))
    if any(group.piece_tokens for group in groups):
        for group in groups:
            own = [context for context in negatives if context.root_id == group.root_id]
            segments.extend(cut_up(group, own, framing, settings, seed))
    else:
        for members in [groups] if settings.layout == "interleaved" else [[g] for g in groups]:
            segments.extend(blocks(members))
    if room:
        padding = np.full(room, framing.pad_id, np.uint32)
        segments.append(Segment(role="padding", token_ids=padding))
    return segments


def arrange(
    sizes: Mapping[str, int], framing: Framing, settings: SampleSettings, seed: int
) -> list[list[str]]:
    """The roots of each sample, from the tokens that each takes with its contexts.

    Roots in a sample and samples in the shard stand in an order by hash, not by size.
    """

    def key(root_id: str) -> tuple[bytes, str]:
        return hash_key(seed, root_id), root_id

    ids = sorted(sizes)
    bins = assign([sizes[i] for i in ids], settings.tokens - framing.bos_tokens)
    samples = [sorted((ids[item] for item in members), key=key) for members in bins]
    return sorted(samples, key=lambda members: key(members[0]))


def pack(
    groups: Sequence[Group], framing: Framing, settings: SampleSettings, seed: int
) -> tuple[list[list[Group]], list[Dropped]]:
    """The groups of each sample, and what no sample holds; for groups that are all in memory."""
    fitted: dict[str, Group] = {}
    dropped: list[Dropped] = []
    for group in sorted(groups, key=lambda g: g.root_id):
        kept, given_up = fit_group(group, framing, settings.tokens)
        dropped.extend(given_up)
        if kept is not None:
            fitted[kept.root_id] = kept
    sizes = {root_id: size_of(group, framing) for root_id, group in fitted.items()}
    samples = arrange(sizes, framing, settings, seed)
    return [[fitted[root_id] for root_id in members] for members in samples], dropped
