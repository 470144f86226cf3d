"""Recipes: which contexts a root gets. All share the corpus, the index, the packing and, for each
root, the budget of tokens: as many as the rule in force verified for it. So the choice of contexts
is all that differs. A root for which that rule verified nothing is dropped under every recipe.

Only contexts that passed the recipe's own rule count as verified. What `no_verify`, `random`,
`quest` and `nextlong` choose has the role `unverified` and brings no dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import polars as pl

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.samples.groups import Context, Group, SampleError, build_groups
from entropylong_assets.stages.samples.packing import NO_DEPENDENCY, Dropped

OVER_BUDGET = "over_budget"


class Pool(Protocol):
    """Passages of the whole corpus, as unverified contexts. None is of the root's document, a
    near-duplicate of it, or given twice."""

    def at_random(self, group: Group) -> Iterator[Context]:
        """Each equally likely; the order is fixed by seed and root."""
        ...

    def on_keywords(self, group: Group) -> Iterator[Context]:
        """Most similar to the root's keywords first."""
        ...

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table `passages`, of passages that it gave."""
        ...


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a recipe chooses from for one root.

    group: with all contexts that the recipe's verdict accepts (the rule in force where it has
    none). retrieved: every passage that the root's anchors nominated and the leak guard let pass,
    unverified. budget: tokens.
    """

    group: Group
    retrieved: tuple[Context, ...]
    budget: int
    meta_chunk_tokens: int
    pool: Pool | None


Recipe = Callable[[Material], Group]


PATIENCE = 16
"""Passages of the whole corpus looked at in vain before a budget counts as full."""


def within(
    contexts: Iterable[Context], budget: int, least: int = 1, patience: int | None = None
) -> tuple[Context, ...]:
    """Contexts in the order given, each whole, as far as they fit into `budget` tokens.

    Stops once `patience` of them did not fit; None: never. Where not even `least` fit, the first
    ones are taken all the same: a root without contexts could not be compared.
    """
    chosen: list[Context] = []
    missed: list[Context] = []
    for context in contexts:
        if len(context.token_ids) <= budget:
            budget -= len(context.token_ids)
            chosen.append(context)
        else:
            missed.append(context)
        if budget <= 0 or len(missed) == patience:
            break
    return (*chosen, *missed[: max(0, least - len(chosen))])


def _by_worth(contexts: Iterable[Context]) -> list[Context]:
    return sorted(contexts, key=lambda c: (-c.worth, c.chunk_id))


def _by_similarity(contexts: Iterable[Context]) -> list[Context]:
    return sorted(contexts, key=lambda c: (-c.similarity, c.chunk_id))


def entropylong(material: Material) -> Group:
    """Contexts with ΔI > ε, the largest summed gain first (Jia et al., arXiv 2510.02330).

    From the paper: entropy-guided retrieval and its plain rule, which asks for no controls.
    Departs where the rule in force is another: then only as many as the budget holds. Follows
    from stored gains.
    """
    group = material.group
    return replace(group, chosen=within(_by_worth(group.chosen), material.budget))


def calibrated(material: Material) -> Group:
    """Contexts with ΔI* > ε that make the true token likelier than it is alone and behind
    controls: the platform's own rule. Follows from stored gains."""
    return entropylong(material)


def no_verify(material: Material) -> Group:
    """What was retrieved, unverified: the best-ranked of every anchor first (the ablation of
    arXiv 2510.02330 without verification; the leak guard stays)."""
    ranked = sorted(material.retrieved, key=lambda c: (c.first_rank, -c.similarity, c.chunk_id))
    return replace(material.group, chosen=within(ranked, material.budget))


def _pool(material: Material) -> Pool:
    if material.pool is None:
        raise SampleError("samples.recipe: this recipe needs the indexed corpus, which is not open")
    return material.pool


def random(material: Material) -> Group:
    """Random passages of the corpus: what concatenation without any choice amounts to.

    Departs from usual practice, which concatenates whole documents: passages are as long as the
    other recipes', and the leak guard applies.
    """
    drawn = _pool(material).at_random(material.group)
    chosen = within(drawn, material.budget, patience=PATIENCE)
    return replace(material.group, chosen=chosen)


def quest(material: Material) -> Group:
    """Passages about the root's keywords (Gao et al., Quest, arXiv 2405.19846).

    From the paper: documents come together because they would answer the same query, and the
    query's keywords stand for it. Departs: keywords are taken from the root itself (by RAKE) and
    not from a query that a model predicts; passages are found by one search of the shared index
    for all of them, not by an inverted list of one keyword; passages, not whole documents.
    """
    found = _pool(material).on_keywords(material.group)
    chosen = within(found, material.budget, patience=PATIENCE)
    return replace(material.group, chosen=chosen)


def nextlong(material: Material) -> Group:
    """The root cut into meta-chunks, similar passages between them (Gao et al., NExtLong, arXiv
    2501.12766).

    From the paper: each meta-chunk is followed by the hard negatives retrieved for it. Departs:
    a meta-chunk asks through its anchors' queries, which the index has answered already, not as
    a whole; the budget bounds the negatives. They are `unverified` here, for a `hard_negative`
    has failed verification. `samples.layout` has no effect.
    """
    step = material.meta_chunk_tokens
    ranked: dict[str, int] = {}
    counts: dict[int, int] = {}
    for context in _by_similarity(material.retrieved):
        piece = context.first_anchor // step
        ranked[context.chunk_id] = counts[piece] = counts.get(piece, 0) + 1
    # The most similar of every meta-chunk, then the second of every one: all get their share.
    fair = sorted(material.retrieved, key=lambda c: (ranked[c.chunk_id], -c.similarity, c.chunk_id))
    return replace(material.group, chosen=within(fair, material.budget), piece_tokens=step)


def policylong(material: Material) -> Group:
    """Verified contexts and hard negatives of the current model's entropies, half the budget
    each as far as there are negatives (Jia et al., PolicyLong, arXiv 2604.07809).

    From the paper: positives and hard negatives come from one screening by the current model,
    which is done again as the model is trained. A round is the same settings with the newer
    checkpoint as `scoring.model` and a `data_uri` of its own; all tables name the model, and
    scores of two models are never mixed. Departs: the rule in force verifies; the share of hard
    negatives is ours; training between rounds is the user's.
    """
    group = material.group
    positives = within(_by_worth(group.chosen), material.budget // 2)
    room = material.budget - sum(len(c.token_ids) for c in positives)
    negatives = within(_by_similarity(group.negatives), room, least=0)
    room -= sum(len(c.token_ids) for c in negatives)
    taken = {context.chunk_id for context in (*positives, *negatives)}
    more = [c for c in _by_worth(group.chosen) if c.chunk_id not in taken]
    left = tuple(c for c in group.negatives if c.chunk_id not in taken)
    chosen = (*positives, *negatives, *within(more, room, least=0))
    return replace(group, chosen=chosen, negatives=left)


RECIPES: Mapping[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (entropylong, calibrated, no_verify, random, quest, nextlong, policylong)
}

_VERDICTS = {
    None: "accepted",
    "policylong": "accepted",
    "entropylong": "accepted_plain",
    "calibrated": "accepted_calibrated",
}


def verdict_column(settings: Settings) -> str | None:
    """Column of `pairs` by which the recipe verifies; None: it verifies nothing."""
    return _VERDICTS.get(settings.samples.recipe)


def needs_pool(settings: Settings) -> bool:
    return settings.samples.recipe in ("random", "quest")


def _retrieved(pairs: pl.DataFrame, contexts: pl.DataFrame) -> dict[str, tuple[Context, ...]]:
    """By root: every passage that passed the leak guard, scored or not, as unverified contexts.

    `first_anchor` and `first_rank` are of the anchor that it is most similar to.
    """
    rows = (
        pairs.filter(pl.col("verdict") != "near_duplicate")
        .sort(
            "root_id",
            "chunk_id",
            "similarity",
            "rank",
            "anchor",
            descending=[False] * 2 + [True] + [False] * 2,
        )
        .unique(["root_id", "chunk_id"], keep="first", maintain_order=True)
        .select("root_id", "chunk_id", "similarity", "anchor", "rank")
        .join(contexts.select("chunk_id", "doc_id", "source", "token_ids"), on="chunk_id")
        .sort("root_id", "chunk_id")
    )
    found: dict[str, list[Context]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault(row["root_id"], []).append(unverified(**row))
    return {root_id: tuple(passages) for root_id, passages in found.items()}


def unverified(
    *,
    root_id: str,
    chunk_id: str,
    doc_id: str,
    source: str,
    token_ids: Sequence[int],
    similarity: float = 0.0,
    anchor: int = 0,
    rank: int = 0,
) -> Context:
    """A context that was chosen without regard to any score."""
    import numpy as np

    return Context(
        root_id=root_id,
        chunk_id=chunk_id,
        doc_id=doc_id,
        source=source,
        token_ids=np.asarray(token_ids, np.uint32),
        dependencies=(),
        worth=similarity,
        first_anchor=anchor,
        first_rank=rank,
        similarity=similarity,
        unverified=True,
    )


def require_controls(settings: Settings, pairs: int, behind_controls: int) -> None:
    """Raises SampleError where the recipe asks for controls and no pair was scored behind any."""
    if settings.samples.recipe == "calibrated" and pairs and not behind_controls:
        raise SampleError(
            "samples.recipe is 'calibrated', but nothing was scored behind controls; set "
            "verification.controls to at least 2 and materialise verified_dependencies again"
        )


def choose_groups(
    roots: pl.DataFrame,
    pairs: pl.DataFrame,
    contexts: pl.DataFrame,
    settings: Settings,
    pool: Pool | None = None,
    *,
    whole: bool = True,
) -> tuple[list[Group], list[Dropped]]:
    """Each root with the contexts that the recipe chooses, and what it passes over.

    roots: root_id, token_ids. pairs, contexts: the tables of `verified_dependencies`, `whole` or
    those of a few roots. Raises SampleError where the tables don't fit each other, or (if they are
    whole) lack what the recipe needs.
    """
    name, rule = settings.samples.recipe, settings.verification.rule
    in_force = "calibrated_gain" if rule == "calibrated" else "gain"
    reference = build_groups(roots, pairs, contexts, gain=in_force)
    if name is None:
        return reference, []
    if whole:
        require_controls(settings, len(pairs), pairs["calibrated_gain"].count())
    own = reference
    if name in ("entropylong", "calibrated"):
        verdict = pairs.with_columns(accepted=pl.col(_VERDICTS[name]))
        gain = "gain" if name == "entropylong" else "calibrated_gain"
        own = build_groups(roots, verdict, contexts, gain=gain)
    counts = verdict_column(settings) is not None
    found = _retrieved(pairs, contexts)
    chosen, passed_over = [], []
    for first, group in zip(reference, own, strict=True):
        budget = sum(len(context.token_ids) for context in first.chosen)
        if not budget or not (group.chosen or not counts):
            lost = sum(len(c.dependencies) for c in group.chosen) if counts else 0
            passed_over.append(_gone(group, None, NO_DEPENDENCY, lost))
            continue
        material = Material(
            group=group,
            retrieved=found.get(group.root_id, ()),
            budget=budget,
            meta_chunk_tokens=settings.samples.meta_chunk_tokens,
            pool=pool,
        )
        picked = RECIPES[name](material)
        if not picked.chosen:
            lost = sum(len(c.dependencies) for c in group.chosen) if counts else 0
            passed_over.append(_gone(group, None, NO_DEPENDENCY, lost))
            continue
        kept = {context.chunk_id for context in picked.chosen}
        passed_over += [
            _gone(group, c.chunk_id, OVER_BUDGET, len(c.dependencies))
            for c in (group.chosen if counts else ())
            if c.chunk_id not in kept
        ]
        left = tuple(c for c in picked.negatives if c.chunk_id not in kept)
        chosen.append(replace(picked, negatives=left))
    return chosen, passed_over


def _gone(group: Group, chunk_id: str | None, reason: str, dependencies: int) -> Dropped:
    return Dropped(
        root_id=group.root_id, chunk_id=chunk_id, reason=reason, n_dependencies=dependencies
    )
