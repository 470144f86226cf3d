"""Packing groups into samples of one exact length.

A sample is `[BOS?] C_1, C_2, ..., D, ...`: contexts as they were scored (with the separator), roots
followed by the separator, padding at the end. No context and no root loses a token; only the
filler that ends a sample is cut. Groups are packed by best-fit decreasing over root and verified
contexts, so that a sample holds as many dependencies as possible; hard negatives or random chunks
of the corpus only fill the rest.

Share of tokens that are not padding, by `benchmarks/packing_utilisation.py` (131,072 tokens, roots
of 256-4,096 tokens, 46 verified contexts and 100 hard negatives of 64-512 tokens per root):

    roots/shard     samples   verified_only             hard_negatives
        20              3     0.777 (full ones 0.930)   1.000
       200             24     0.972 (0.981)             1.000
     2,000            242     0.977 (0.980)             1.000

The last sample of a shard is not full under `verified_only`: few large shards waste less.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from entropylong_assets.stages.samples.groups import Context, Group, SampleError, TokenIds
from entropylong_assets.stages.samples.ordering import hash_key, order_contexts
from entropylong_assets.stages.samples.settings import SampleSettings

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
    from entropylong_assets.stages.samples.registry import Fillers

NO_DEPENDENCY = "no_verified_dependency"
NO_CONTEXT_FITS = "no_context_fits"
GROUP_TOO_LARGE = "group_too_large"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was not packed: a context, or a whole root if `chunk_id` is None."""

    root_id: str
    chunk_id: str | None
    reason: str
    n_dependencies: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A run of tokens of one role, and the group and context that it was made from."""

    role: str
    token_ids: TokenIds
    group: Group | None = None
    context: Context | None = None


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Tokens before and after contexts and roots when they were scored, and the padding."""

    bos_ids: tuple[int, ...]
    """Begin a sample; empty if the model scores without special tokens."""
    separator_ids: tuple[int, ...]
    """Ends every context and root."""
    pad_id: int
    """Fills a sample; masked from the loss."""

    @classmethod
    def of(cls, tokenizer: TokenizerFacts) -> Framing:
        """The framing with which this tokenizer's model scores."""
        return cls(
            bos_ids=tokenizer.sample_begins_with,
            separator_ids=tokenizer.separator_ids,
            pad_id=tokenizer.pad_id,
        )

    @property
    def bos_tokens(self) -> int:
        return len(self.bos_ids)

    def root_ids(self, group: Group) -> TokenIds:
        """Tokens of a whole root, with the separator."""
        return np.concatenate([group.token_ids, np.array(self.separator_ids, np.uint32)])


def _n_tokens(contexts: Sequence[Context]) -> int:
    return sum(len(context.token_ids) for context in contexts)


def size_of(group: Group, framing: Framing) -> int:
    """Number of tokens of a group without its hard negatives."""
    return len(group.token_ids) + len(framing.separator_ids) + _n_tokens(group.chosen)


def fit_group(
    group: Group, framing: Framing, sample_tokens: int
) -> tuple[Group | None, list[Dropped]]:
    """Drop contexts until the group fits one sample; return the group and what was dropped.

    Contexts are kept by priority, as far as each fits whole. The group is None if no context is
    left. Raises SampleError if the root alone is longer than a sample.
    """
    total = sum(len(context.dependencies) for context in group.chosen)
    root_tokens = len(group.token_ids) + len(framing.separator_ids)
    room = sample_tokens - framing.bos_tokens - root_tokens
    if room < 0:
        raise SampleError(
            f"root {group.root_id}: {root_tokens + framing.bos_tokens} tokens with separator and "
            f"BOS, a sample has {sample_tokens}; raise samples.tokens or lower roots.max_tokens"
        )

    def drop(context: Context | None, reason: str, n: int) -> Dropped:
        chunk_id = None if context is None else context.chunk_id
        return Dropped(root_id=group.root_id, chunk_id=chunk_id, reason=reason, n_dependencies=n)

    if not group.chosen:
        return None, [drop(None, NO_DEPENDENCY, 0)]
    kept, dropped = [], []
    for context in sorted(group.chosen, key=lambda c: (-c.priority, c.chunk_id)):
        if len(context.token_ids) <= room:
            room -= len(context.token_ids)
            kept.append(context)
        else:
            dropped.append(drop(context, GROUP_TOO_LARGE, len(context.dependencies)))
    if not kept:
        return None, [drop(None, NO_CONTEXT_FITS, total)]
    return replace(group, chosen=tuple(kept)), dropped


def other_roots(group: Group, root_ids: Collection[str]) -> frozenset[str]:
    """Return which of these roots are documents of a context of the group.

    In one sample, such a root could be copied from the context of another root.
    """
    return frozenset(c.doc_id for c in group.chosen if c.doc_id in root_ids)


def assign(
    sizes: Sequence[int], capacity: int, apart: Mapping[int, Collection[int]] = {}
) -> list[list[int]]:
    """Pack items into bins by best-fit decreasing; return the indices of the items of each bin.

    Every size is at most `capacity`. apart: by item, those that may not share its bin; both items
    of a pair name each other. Ties are broken by index, so the result depends on the arguments
    alone.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect_left(free, (sizes[item], -1))
        while place < len(free) and any(i in bins[free[place][1]] for i in apart.get(item, ())):
            place += 1
        if place == len(free):
            bins.append([])
            left, chosen = capacity, len(bins) - 1
        else:
            left, chosen = free.pop(place)
        bins[chosen].append(item)
        insort(free, (left - sizes[item], chosen))
    return bins


def choose_negatives(groups: Sequence[Group], room: int) -> list[Context]:
    """Choose hard negatives for a sample, most similar first, as far as they fit whole into `room`.

    Passages that the sample already contains, or that come from one of its roots, are not added.
    """
    present = {context.chunk_id for group in groups for context in group.chosen}
    roots = {group.root_id for group in groups}
    candidates = (c for group in groups for c in group.negatives if c.doc_id not in roots)
    chosen = []
    for context in sorted(candidates, key=lambda c: (-c.similarity, c.chunk_id, c.root_id)):
        if len(context.token_ids) <= room and context.chunk_id not in present:
            present.add(context.chunk_id)
            room -= len(context.token_ids)
            chosen.append(context)
    return chosen


def choose_fillers(
    passages: Iterable[Context], groups: Sequence[Group], room: int
) -> tuple[list[Context], Segment | None]:
    """Take passages in their order until `room` tokens are full.

    Returns those that fit whole, and the segment that ends the sample: the first one that does not,
    cut to what is left. None if the passages end before. A passage that the sample contains already
    is not taken.
    """
    present = {context.chunk_id for group in groups for context in group.chosen}
    chosen: list[Context] = []
    for context in passages:
        if context.chunk_id in present:
            continue
        if len(context.token_ids) >= room:
            return chosen, Segment(
                role=context.role, token_ids=context.token_ids[:room], context=context
            )
        present.add(context.chunk_id)
        chosen.append(context)
        room -= len(context.token_ids)
    return chosen, None


def lay_out_pieces(
    group: Group, rest: Sequence[Context], framing: Framing, settings: SampleSettings, seed: int
) -> Iterator[Segment]:
    """Yield the segments of a group whose root is cut (NExtLong).

    The filling of the sample comes first, then each piece of the root, followed by its contexts.
    """

    def segments(contexts: Sequence[Context]) -> Iterator[Segment]:
        for context in order_contexts(contexts, settings.order, seed):
            yield _segment(context, group)

    yield from segments(rest)
    root_ids, step = framing.root_ids(group), group.piece_tokens or len(group.token_ids)
    starts = range(0, len(group.token_ids), step)
    for start in starts:
        last = start == starts[-1]
        end = len(root_ids) if last else start + step
        yield Segment(role="root", token_ids=root_ids[start:end], group=group)
        yield from segments(
            [c for c in group.chosen if start <= c.first_anchor and (last or c.first_anchor < end)]
        )


def _segment(context: Context, group: Group) -> Segment:
    """The segment of a whole context. A filler belongs to no root, wherever it is placed."""
    return Segment(
        role=context.role,
        token_ids=context.token_ids,
        group=None if context.filler else group,
        context=context,
    )


def lay_out(
    groups: Sequence[Group],
    framing: Framing,
    settings: SampleSettings,
    seed: int,
    pool: Fillers | None = None,
) -> list[Segment]:
    """The segments of one sample, exactly `settings.tokens` tokens long.

    pool: for `fill: corpus`. Its fillers are distributed evenly among the contexts of the roots.
    The last one, cut to fit, ends the sample.
    """
    room = settings.tokens - framing.bos_tokens - sum(size_of(group, framing) for group in groups)
    assert room >= 0, "groups don't fit their sample"
    rest: list[Context] = []
    last: Segment | None = None
    if settings.fill == "hard_negatives":
        rest = choose_negatives(groups, room)
    elif settings.fill == "corpus" and room:
        assert pool is not None, "fill: corpus draws from the indexed corpus"
        rest, last = choose_fillers(pool.fillers(groups), groups, room)
    room -= _n_tokens(rest)

    by_id = {group.root_id: group for group in groups}

    def blocks(members: Sequence[Group]) -> Iterator[Segment]:
        """Ordered contexts of these groups, then their roots."""
        ids = {group.root_id for group in members}
        contexts = [context for group in members for context in group.chosen]
        contexts += [context for context in rest if context.root_id in ids]
        for context in order_contexts(contexts, settings.order, seed):
            yield _segment(context, by_id[context.root_id])
        for group in members:
            yield Segment(role="root", token_ids=framing.root_ids(group), group=group)

    segments = []
    if framing.bos_ids:
        segments.append(Segment(role="bos", token_ids=np.array(framing.bos_ids, np.uint32)))
    if any(group.piece_tokens for group in groups):
        for group in groups:
            own = [context for context in rest if context.root_id == group.root_id]
            segments.extend(lay_out_pieces(group, own, framing, settings, seed))
    else:
        for members in [groups] if settings.layout == "interleaved" else [[g] for g in groups]:
            segments.extend(blocks(members))
    if last is not None:
        segments.append(last)
    elif room:
        padding = np.full(room, framing.pad_id, np.uint32)
        segments.append(Segment(role="padding", token_ids=padding))
    return segments


def arrange(
    sizes: Mapping[str, int],
    apart: Mapping[str, AbstractSet[str]],
    framing: Framing,
    settings: SampleSettings,
    seed: int,
) -> list[list[str]]:
    """Assign roots to samples; return the root_ids of each sample.

    sizes: tokens of each root with its contexts, by root_id. apart: by root_id, roots that may not
    be in its sample (`other_roots`). Roots within a sample and samples within the shard are ordered
    by hash, not by size.
    """

    def key(root_id: str) -> tuple[bytes, str]:
        return hash_key(seed, root_id), root_id

    ids = sorted(sizes)
    items = {root_id: item for item, root_id in enumerate(ids)}
    pairs: dict[int, set[int]] = {}
    for one, others in apart.items():
        for other in others & items.keys():
            pairs.setdefault(items[one], set()).add(items[other])
            pairs.setdefault(items[other], set()).add(items[one])
    bins = assign([sizes[i] for i in ids], settings.tokens - framing.bos_tokens, pairs)
    samples = [sorted((ids[item] for item in members), key=key) for members in bins]
    return sorted(samples, key=lambda members: key(members[0]))


def pack(
    groups: Sequence[Group], framing: Framing, settings: SampleSettings, seed: int
) -> tuple[list[list[Group]], list[Dropped]]:
    """Assign groups to samples; return the groups of each sample and what was dropped.

    For groups that are all in memory; `pack_shard` reads them in batches.
    """
    fitted: dict[str, Group] = {}
    dropped: list[Dropped] = []
    for group in sorted(groups, key=lambda g: g.root_id):
        kept, too_large = fit_group(group, framing, settings.tokens)
        dropped.extend(too_large)
        if kept is not None:
            fitted[kept.root_id] = kept
    sizes = {root_id: size_of(group, framing) for root_id, group in fitted.items()}
    apart = {root_id: other_roots(group, fitted) for root_id, group in fitted.items()}
    samples = arrange(sizes, apart, framing, settings, seed)
    return [[fitted[root_id] for root_id in members] for members in samples], dropped
