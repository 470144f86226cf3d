"""Limits on how often one context, document or root serves in the samples of a shard.

A *use* is a context in a sample, chosen for one root: verified, or unverified under a recipe that
verifies nothing. Hard negatives and fillers are no uses. Uses are kept by priority over the whole
shard, so that a popular context stays with the roots that gain most from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from entropylong_assets.stages.samples.groups import Group
from entropylong_assets.stages.samples.packing import Dropped
from entropylong_assets.stages.samples.settings import SampleSettings

OVER_USE_LIMIT = "over_use_limit"

Use = tuple[str, str]
"""(root_id, chunk_id)."""


USE_LIMITS = ("max_uses_per_context", "max_uses_per_document", "max_contexts_per_root")
"""The settings of `samples` that limit uses of a context, a document and a root."""


def _limits(settings: SampleSettings) -> list[int | None]:
    return [getattr(settings, name) for name in USE_LIMITS]


def has_use_limits(settings: SampleSettings) -> bool:
    return any(limit is not None for limit in _limits(settings))


def uses_over_limits(groups: Iterable[Group], settings: SampleSettings) -> frozenset[Use]:
    """Return the uses that a limit forbids.

    groups: all roots of a shard, in any order. A use is kept if its context, its document and its
    root are each below their limit among the uses of higher priority that were kept. Equal
    priorities are taken by root_id and chunk_id.
    """
    limits = _limits(settings)
    uses = [
        (-context.priority, group.root_id, context.chunk_id, context.doc_id)
        for group in groups
        for context in group.chosen
    ]
    kept: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    over = set()
    for _, root_id, chunk_id, doc_id in sorted(uses):
        counted = list(zip(kept, (chunk_id, doc_id, root_id), limits, strict=True))
        if any(limit is not None and count[name] >= limit for count, name, limit in counted):
            over.add((root_id, chunk_id))
            continue
        for count, name, _ in counted:
            count[name] += 1
    return frozenset(over)


def drop_uses(groups: Iterable[Group], over: frozenset[Use]) -> tuple[list[Group], list[Dropped]]:
    """Remove these uses; return the groups and what was dropped.

    A root that has no context left is dropped as well.
    """
    kept_groups, dropped = [], []
    for group in groups:
        kept = tuple(c for c in group.chosen if (group.root_id, c.chunk_id) not in over)
        dropped += [
            Dropped(
                root_id=group.root_id,
                chunk_id=context.chunk_id,
                reason=OVER_USE_LIMIT,
                n_dependencies=len(context.dependencies),
            )
            for context in group.chosen
            if context not in kept
        ]
        if kept or not group.chosen:
            kept_groups.append(replace(group, chosen=kept))
        else:
            dropped.append(
                Dropped(
                    root_id=group.root_id, chunk_id=None, reason=OVER_USE_LIMIT, n_dependencies=0
                )
            )
    return kept_groups, dropped
