"""Recipes by hand: the same roots, the same budget, and what each may call verified.

Named failures: a rival that gets more text than ours; a passage called verified that nothing
verified; a recipe that changes the samples of those who asked for none.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest

from entropylong_assets.settings.model import RecipeName, Settings
from entropylong_assets.stages.samples.groups import Context, Group, SampleError
from entropylong_assets.stages.samples.pool import keywords
from entropylong_assets.stages.samples.recipes import RECIPES, unverified, within
from entropylong_assets_tests.stages.samples.worlds import (
    SEPARATOR,
    Packed,
    World,
    make_world,
    run,
    settings_for,
)

TOKENS = 700


class HandPool:
    """Passages of tokens that occur nowhere in the world, as long as its chunks."""

    def __init__(self, root_tokens: int = 0) -> None:
        self.asked: Counter[str] = Counter()
        self._rows: dict[str, dict[str, Any]] = {}

    def _give(self, group: Group, name: str) -> Iterator[Context]:
        self.asked[name] += 1
        for number in range(40):
            chunk_id = f"{name}-{number:05d}"
            ids = [50_000 + 100 * number + i for i in range(4 + number % 6)] + list(SEPARATOR)
            self._rows[chunk_id] = {
                "chunk_id": chunk_id,
                "doc_id": f"{name}{number}",
                "shard": "web-00002",
                "source": "web",
                "start": 0,
                "end": 9,
                "token_ids": ids,
            }
            yield unverified(
                root_id=group.root_id,
                chunk_id=chunk_id,
                doc_id=f"{name}{number}",
                source="web",
                token_ids=ids,
            )

    def at_random(self, group: Group) -> Iterator[Context]:
        return self._give(group, "drawn")

    def on_keywords(self, group: Group) -> Iterator[Context]:
        return self._give(group, "asked")

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._rows[chunk_id] for chunk_id in chunk_ids]


def world() -> World:
    """Roots whose plain rule accepts some pairs that the calibrated one refuses."""
    made = make_world(11, n_roots=6, n_chunks=14, pairs_per_root=26, p_accepted=0.5)
    for number, pair in enumerate(made.pairs):
        if pair["accepted"] and number % 3 == 0:
            pair.update(accepted=False, accepted_calibrated=False, verdict="gain_too_small")
            pair.update(calibrated_gain=0.1)
    assert sum(p["accepted_plain"] for p in made.pairs) > sum(p["accepted"] for p in made.pairs)
    return made


def pack(recipe: str | None, made: World | None = None, **choice: Any) -> Packed:
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(TOKENS, fill="verified_only", recipe=recipe, **choice)
        return run(folder, (made or world()).frames(), settings, pool=HandPool())


def context_tokens(packed: Packed) -> dict[str, int]:
    tokens: dict[str, int] = defaultdict(int)
    for s in packed.segments:
        if s["role"] in ("verified", "hard_negative", "unverified"):
            tokens[s["root_id"]] += s["end"] - s["start"]
    return dict(tokens)


def roots_of(packed: Packed) -> set[str]:
    return {s["root_id"] for s in packed.segments if s["role"] == "root"}


def test_every_recipe_of_the_settings_is_there() -> None:
    assert set(RECIPES) == set(get_args(RecipeName))
    assert all(recipe.__doc__ for recipe in RECIPES.values())


def test_without_a_recipe_nothing_changes() -> None:
    """`calibrated` under the calibrated rule is what was packed before there were recipes."""
    assert pack(None).data_version == pack("calibrated").data_version
    assert pack(None).passages == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_roots_within_the_same_budget(recipe: str) -> None:
    reference, packed = pack(None), pack(recipe)
    budget, used = context_tokens(reference), context_tokens(packed)
    assert roots_of(packed) == roots_of(reference)
    assert len(budget) >= 5
    for root_id, tokens in used.items():
        # Whole passages: one too long to fit is taken where nothing else was.
        alone = sum(s["root_id"] == root_id and s["chunk_id"] is not None for s in packed.segments)
        assert tokens <= budget[root_id] or alone == 1
    assert sum(used.values()) > 0.8 * sum(budget.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_roles_say_what_was_verified(recipe: str) -> None:
    made, packed = world(), pack(recipe)
    column = "accepted_plain" if recipe == "entropylong" else "accepted"
    accepted = {(p["root_id"], p["chunk_id"]) for p in made.pairs if p[column]}
    roles = Counter(s["role"] for s in packed.segments)
    for s in packed.segments:
        if s["role"] == "verified":
            assert (s["root_id"], s["chunk_id"]) in accepted
    if recipe in ("entropylong", "calibrated", "policylong"):
        assert roles["verified"] > 0
        assert roles["unverified"] == 0
        assert packed.dependencies
        lost = sum(d["n_dependencies"] for d in packed.dropped)
        wanted = sum(p[column] for p in made.pairs)
        assert len(packed.dependencies) + lost == wanted == packed.summary["dependencies"]
    else:
        assert roles["unverified"] > 0
        assert roles["verified"] == roles["hard_negative"] == 0
        assert not packed.dependencies
        assert packed.summary["dependencies"] == 0
    assert (roles["hard_negative"] > 0) == (recipe == "policylong")
    for sample in packed.samples:
        assert len(sample["input_ids"]) == TOKENS
        assert sum(sample[f"n_{r}"] for r in ("root", "verified", "negative", "padding")) == (
            TOKENS - 1
        )


def test_the_plain_rule_s_own_dependencies_come_back_when_it_is_in_force() -> None:
    made = world()
    for pair in made.pairs:
        pair["accepted"] = pair["accepted_plain"]
    settings = settings_for(TOKENS, fill="verified_only")
    verification = settings.verification.model_copy(update={"rule": "plain"})
    versions = set()
    for recipe in (None, "entropylong"):
        samples = settings.samples.model_copy(update={"recipe": recipe})
        chosen = settings.model_copy(update={"verification": verification, "samples": samples})
        with tempfile.TemporaryDirectory() as folder:
            packed = run(folder, made.frames(), chosen)
        versions.add(packed.data_version)
        assert len(packed.dependencies) == sum(p["accepted_plain"] for p in made.pairs)
    assert len(versions) == 1


def test_no_verify_takes_the_best_ranked_whether_accepted_or_not() -> None:
    made, packed = world(), pack("no_verify")
    tried = {(p["root_id"], p["chunk_id"]): p["verdict"] for p in made.pairs}
    chosen = [(s["root_id"], s["chunk_id"]) for s in packed.segments if s["chunk_id"]]
    verdicts = {tried[key] for key in chosen}
    assert "near_duplicate" not in verdicts
    assert len(verdicts) >= 3


@pytest.mark.parametrize(("recipe", "name"), [("random", "drawn"), ("quest", "asked")])
def test_passages_from_outside_are_kept_with_their_tokens(recipe: str, name: str) -> None:
    packed = pack(recipe)
    tokens = {row["chunk_id"]: row["token_ids"] for row in packed.passages}
    by_id = {s["sample_id"]: s["input_ids"] for s in packed.samples}
    checked = 0
    for s in packed.segments:
        if s["chunk_id"]:
            assert s["chunk_id"].startswith(name)
            assert by_id[s["sample_id"]][s["start"] : s["end"]] == tokens[s["chunk_id"]]
            checked += 1
    assert checked > 10
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.raises(SampleError, match="needs the indexed corpus"),
    ):
        run(folder, world().frames(), settings_for(TOKENS, recipe=recipe))


def test_nextlong_cuts_the_root_and_loses_no_token() -> None:
    made, packed = world(), pack("nextlong", meta_chunk_tokens=6)
    roots = {r["root_id"]: [*r["token_ids"], *SEPARATOR] for r in made.roots}
    by_id = {s["sample_id"]: s["input_ids"] for s in packed.samples}
    pieces: dict[str, list[list[int]]] = defaultdict(list)
    for s in sorted(packed.segments, key=lambda s: (s["sample_id"], s["segment"])):
        if s["role"] == "root":
            pieces[s["root_id"]].append(by_id[s["sample_id"]][s["start"] : s["end"]])
    assert any(len(parts) > 2 for parts in pieces.values())
    for root_id, parts in pieces.items():
        assert [token for part in parts for token in part] == roots[root_id]
        assert all(len(part) == 6 for part in parts[:-1])
    letters = "".join("D" if s["role"] == "root" else "C" for s in packed.segments if s["root_id"])
    assert "DCD" in letters.replace("CC", "C")


def test_policylong_stands_on_both_feet() -> None:
    tokens: Counter[str] = Counter()
    for s in pack("policylong").segments:
        tokens[s["role"]] += s["end"] - s["start"]
    # A root whose negatives run out gives the rest of the budget to verified contexts.
    assert 0.3 < tokens["hard_negative"] / tokens["verified"] < 2.0


def test_calibrated_without_controls_is_refused_in_one_line() -> None:
    made = world()
    for pair in made.pairs:
        pair.update(calibrated_gain=None, accepted_calibrated=False)
    with pytest.raises(SampleError, match=r"verification\.controls") as error:
        pack("calibrated", made)
    assert "\n" not in str(error.value)


def contexts(*lengths: int) -> list[Context]:
    return [
        unverified(root_id="r", chunk_id=f"c{i}", doc_id="d", source="s", token_ids=[1] * n)
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "budget", "taken"),
    [
        ((5, 5, 5), 10, ["c0", "c1"]),
        ((5, 9, 4), 10, ["c0", "c2"]),
        ((12, 13), 10, ["c0"]),  # none fits: the first, so that the root can be compared
        ((10,), 10, ["c0"]),
        ((), 10, []),
    ],
)
def test_a_budget_is_filled_in_the_recipe_s_order(
    lengths: tuple[int, ...], budget: int, taken: list[str]
) -> None:
    assert [c.chunk_id for c in within(contexts(*lengths), budget)] == taken


def test_keywords_are_rake_s() -> None:
    """By hand: degree over frequency, summed over the phrase; stopwords and marks break phrases."""
    text = (
        "Sparse matrix solvers are fast. The sparse matrix is stored by rows, and rows are cheap."
    )
    # sparse, matrix: degree 3+2, frequency 2; solvers: 3/1. A phrase's score is the sum.
    assert keywords(text, 2) == ["sparse matrix solvers", "sparse matrix"]
    assert set(keywords(text)) == {
        "sparse matrix solvers",
        "fast",
        "sparse matrix",
        "stored",
        "rows",
        "cheap",
    }
    assert keywords("the of and") == []


def test_order_of_rows_changes_no_byte_under_any_recipe() -> None:
    import random

    made = world()
    for recipe in RECIPES:
        versions = set()
        for rng in (None, random.Random(5)):
            with tempfile.TemporaryDirectory() as folder:
                settings: Settings = settings_for(TOKENS, recipe=recipe)
                packed = run(folder, made.frames(rng), settings, pool=HandPool())
            versions.add(packed.data_version)
        assert len(versions) == 1, recipe
