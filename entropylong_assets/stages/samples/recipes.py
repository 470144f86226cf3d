"""The built-in recipes: the paper's and ours, rivals, and the ablation without verification.

Only contexts that the recipe's own rule accepted count as verified. What `no_verify`, `random`,
`quest` and `nextlong` choose has the role `unverified` and brings no dependency.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.registry import IN_FORCE, RECIPES, Material, Recipe

PATIENCE = 16
"""Number of passages that do not fit into the rest of a budget, after which it counts as full."""


def fit_to_budget(
    contexts: Iterable[Context], budget: int, least: int = 1, patience: int | None = None
) -> tuple[Context, ...]:
    """Return the contexts that fit whole into `budget` tokens, in the given order.

    Stops after `patience` contexts that did not fit (None: never). If fewer than `least` fit, the
    first ones are added all the same: a root without contexts could not be compared.
    """
    chosen: list[Context] = []
    too_long: list[Context] = []
    for context in contexts:
        if len(context.token_ids) <= budget:
            budget -= len(context.token_ids)
            chosen.append(context)
        else:
            too_long.append(context)
        if budget <= 0 or len(too_long) == patience:
            break
    return (*chosen, *too_long[: max(0, least - len(chosen))])


def _by_priority(contexts: Iterable[Context]) -> list[Context]:
    return sorted(contexts, key=lambda c: (-c.priority, c.chunk_id))


def _by_similarity(contexts: Iterable[Context]) -> list[Context]:
    return sorted(contexts, key=lambda c: (-c.similarity, c.chunk_id))


class _Verified(Recipe):
    """All contexts that its rule accepts, largest summed gain first, within the budget."""

    def choose(self, material: Material) -> Group:
        group = material.group
        return replace(group, chosen=fit_to_budget(_by_priority(group.chosen), material.budget))


@RECIPES.register("entropylong")
class EntropyLong(_Verified):
    """Contexts with ΔI > ε, the largest summed gain first (Jia et al., arXiv 2510.02330).

    From the paper: entropy-guided retrieval and its plain rule, which needs no controls.
    Different: if another rule is in force, the budget is what that rule verified. Follows from
    stored gains.
    """

    rule = "plain"


@RECIPES.register("calibrated")
class Calibrated(_Verified):
    """Contexts with ΔI* > ε that make the true token likelier than alone and than given controls:
    the platform's own rule. Follows from stored gains."""

    rule = "calibrated"


@RECIPES.register("genuine")
class Genuine(_Verified):
    """Contexts that rule `genuine` accepts: `calibrated`, and the anchor's word stands in the
    context in wording that is rare in the corpus. Follows from stored gains and counts of
    phrases."""

    rule = "genuine"


@RECIPES.register("no_verify")
class NoVerify(Recipe):
    """Retrieved contexts without verification, the best-ranked of every anchor first.

    The ablation of arXiv 2510.02330 without verification; the leak check still applies.
    """

    def choose(self, material: Material) -> Group:
        ranked = sorted(material.retrieved, key=lambda c: (c.first_rank, -c.similarity, c.chunk_id))
        return replace(material.group, chosen=fit_to_budget(ranked, material.budget))


@RECIPES.register("random")
class Random(Recipe):
    """Random passages of the corpus: concatenation without any choice.

    Different from usual practice, which concatenates whole documents: passages are as long as those
    of the other recipes, and the leak check applies.
    """

    needs_pool = True

    def choose(self, material: Material) -> Group:
        drawn = material.pool.at_random(material.group)
        chosen = fit_to_budget(drawn, material.budget, patience=PATIENCE)
        return replace(material.group, chosen=chosen)


@RECIPES.register("quest")
class Quest(Recipe):
    """Passages about the root's keywords (Gao et al., Quest, arXiv 2405.19846).

    From the paper: documents are concatenated that would answer the same query, represented by the
    query's keywords. Different: the keywords come from the root itself (by RAKE) and not from a
    query that a model predicts; one search of the shared index for all of them finds the passages,
    not an inverted list of one keyword; passages, not whole documents.
    """

    needs_pool = True

    def choose(self, material: Material) -> Group:
        passages = material.pool.on_keywords(material.group)
        chosen = fit_to_budget(passages, material.budget, patience=PATIENCE)
        return replace(material.group, chosen=chosen)


META_CHUNK_TOKENS = "samples.meta_chunk_tokens"


@RECIPES.register("nextlong")
class NExtLong(Recipe):
    """The root cut into meta-chunks, with similar passages between them (Gao et al., NExtLong,
    arXiv 2501.12766).

    From the paper: each meta-chunk is followed by the hard negatives retrieved for it. Different: a
    meta-chunk retrieves through the queries of its anchors, which the index has answered already,
    not as a whole; the budget limits the negatives. They are `unverified` here, because a
    `hard_negative` has failed verification. `samples.layout` has no effect.
    """

    reads = (META_CHUNK_TOKENS,)
    ignores = ("samples.layout",)

    def choose(self, material: Material) -> Group:
        step = material.settings[META_CHUNK_TOKENS]
        ranked: dict[str, int] = {}
        counts: dict[int, int] = {}
        for context in _by_similarity(material.retrieved):
            piece = context.first_anchor // step
            ranked[context.chunk_id] = counts[piece] = counts.get(piece, 0) + 1
        # The most similar context of every meta-chunk, then the second of each, and so on.
        fair = sorted(
            material.retrieved, key=lambda c: (ranked[c.chunk_id], -c.similarity, c.chunk_id)
        )
        chosen = fit_to_budget(fair, material.budget)
        return replace(material.group, chosen=chosen, piece_tokens=step)


@RECIPES.register("policylong")
class PolicyLong(Recipe):
    """Verified contexts and hard negatives by the entropies of the current model, each with half of
    the budget while there are negatives (Jia et al., PolicyLong, arXiv 2604.07809).

    From the paper: positives and hard negatives come from one screening by the current model, which
    is repeated as the model is trained. A round is a dataset with the newer checkpoint as
    `scoring.model`; all tables name the model, and scores of two models are never mixed. Different:
    the rule in force verifies; the share of hard negatives is ours; training between rounds is left
    to the user.
    """

    rule = IN_FORCE

    def choose(self, material: Material) -> Group:
        group = material.group
        positives = fit_to_budget(_by_priority(group.chosen), material.budget // 2)
        room = material.budget - sum(len(c.token_ids) for c in positives)
        negatives = fit_to_budget(_by_similarity(group.negatives), room, least=0)
        room -= sum(len(c.token_ids) for c in negatives)
        taken = {context.chunk_id for context in positives}
        more = [c for c in _by_priority(group.chosen) if c.chunk_id not in taken]
        chosen = (*positives, *negatives, *fit_to_budget(more, room, least=0))
        return replace(group, chosen=chosen)
