"""Recipes by hand: the same roots and budget, and which contexts count as verified.

Failures looked for: a rival that gets more text than ours; a passage called verified that no rule
accepted; a recipe that changes samples made without one.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.groups import Context, Group, SampleError, unverified
from entropylong_assets.stages.samples.pool import keywords
from entropylong_assets.stages.samples.recipes import fit_to_budget
from entropylong_assets.stages.samples.registry import RECIPES, Material, Recipe
from entropylong_assets.stages.samples.settings import BUILT_IN_RECIPES
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.verification.registry import RULES
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

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def _contexts(self, group: Group, name: str) -> Iterator[Context]:
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
                "text": "passage",
                "token_ids": ids,
            }
            yield unverified(
                root_id=group.root_id,
                chunk_id=chunk_id,
                doc_id=f"{name}{number}",
                source="web",
                token_ids=ids,
            )

    def announce(self, groups: Sequence[Group]) -> None:
        """Every root is answered by itself."""

    def at_random(self, group: Group) -> Iterator[Context]:
        return self._contexts(group, "drawn")

    def on_keywords(self, group: Group) -> Iterator[Context]:
        return self._contexts(group, "searched")

    def fillers(self, groups: Sequence[Group]) -> Iterator[Context]:
        for context in self._contexts(groups[0], "filling"):
            yield replace(context, unverified=False, filler=True)

    def rows(self, chunk_ids: Sequence[str]) -> list[dict[str, Any]]:
        return [self._rows[chunk_id] for chunk_id in chunk_ids]


def accepted(inputs: World, rule: str) -> list[dict[str, Any]]:
    """The pairs that a rule accepts."""
    return [pair for pair in inputs.pairs if rule in pair["accepted_by"]]


def world() -> World:
    """Roots for which the plain rule accepts some pairs that the calibrated one rejects."""
    result = make_world(11, n_roots=6, n_chunks=14, pairs_per_root=26, p_accepted=0.5)
    for number, pair in enumerate(result.pairs):
        if pair["accepted"] and number % 3 == 0:
            pair.update(accepted=False, accepted_by=["plain"], verdict="gain_too_small")
            pair.update(calibrated_gain=0.1)
    assert len(accepted(result, "plain")) > len(accepted(result, "calibrated")) > 10
    return result


def pack(recipe: str | None, inputs: World | None = None, **choice: Any) -> Packed:
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(TOKENS, fill="verified_only", recipe=recipe, **choice)
        return run(folder, (inputs or world()).frames(), settings, pool=HandPool())


def context_tokens(packed: Packed) -> dict[str, int]:
    tokens: dict[str, int] = defaultdict(int)
    for s in packed.segments:
        if s["role"] in ("verified", "hard_negative", "unverified"):
            tokens[s["root_id"]] += s["end"] - s["start"]
    return dict(tokens)


def roots_of(packed: Packed) -> set[str]:
    return {s["root_id"] for s in packed.segments if s["role"] == "root"}


def test_registry_has_the_built_in_recipes_in_their_order() -> None:
    assert RECIPES.names()[: len(BUILT_IN_RECIPES)] == BUILT_IN_RECIPES
    assert all(RECIPES[name].__doc__ for name in BUILT_IN_RECIPES)


def test_calibrated_equals_no_recipe_if_its_rule_is_in_force() -> None:
    assert pack(None).data_version == pack("calibrated").data_version
    assert pack(None).passages == []


WORDLESS = tuple(recipe for recipe in BUILT_IN_RECIPES if recipe != "genuine")
"""Recipes that verify something here: the pairs of this world have no words."""


@pytest.mark.parametrize("recipe", WORDLESS)
def test_recipe_packs_the_same_roots_within_the_same_budget(recipe: str) -> None:
    reference, packed = pack(None), pack(recipe)
    budget, used = context_tokens(reference), context_tokens(packed)
    assert roots_of(packed) == roots_of(reference)
    assert len(budget) >= 5
    for root_id, tokens in used.items():
        # Whole passages: one too long to fit is taken if no other was.
        alone = sum(s["root_id"] == root_id and s["chunk_id"] is not None for s in packed.segments)
        assert tokens <= budget[root_id] or alone == 1
    assert sum(used.values()) > 0.8 * sum(budget.values())


@pytest.mark.parametrize("recipe", WORDLESS)
def test_recipe_calls_verified_what_its_rule_accepts(recipe: str) -> None:
    inputs, packed = world(), pack(recipe)
    verified = accepted(inputs, "plain" if recipe == "entropylong" else "calibrated")
    contexts = {(p["root_id"], p["chunk_id"]) for p in verified}
    roles = Counter(s["role"] for s in packed.segments)
    for s in packed.segments:
        if s["role"] == "verified":
            assert (s["root_id"], s["chunk_id"]) in contexts
    if recipe in ("entropylong", "calibrated", "policylong"):
        assert roles["verified"] > 0
        assert roles["unverified"] == 0
        assert packed.dependencies
        dropped = sum(d["n_dependencies"] for d in packed.dropped)
        assert len(packed.dependencies) + dropped == len(verified)
        assert packed.summary["dependencies"] == len(verified)
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


@pytest.mark.parametrize("compared", [("plain", "calibrated"), ()])
def test_entropylong_equals_no_recipe_if_its_rule_is_in_force(compared: tuple[str, ...]) -> None:
    inputs = world()
    for pair in inputs.pairs:
        pair["accepted"] = "plain" in pair["accepted_by"]
    settings = settings_for(TOKENS, fill="verified_only")
    rules = {"rule": "plain", "compared_rules": compared}
    verification = settings.verification.model_copy(update=rules)
    versions = set()
    for recipe in (None, "entropylong"):
        samples = settings.samples.model_copy(update={"recipe": recipe})
        chosen = settings.model_copy(update={"verification": verification, "samples": samples})
        with tempfile.TemporaryDirectory() as folder:
            packed = run(folder, inputs.frames(), chosen)
        versions.add(packed.data_version)
        assert len(packed.dependencies) == len(accepted(inputs, "plain"))
    assert len(versions) == 1


def test_no_verify_takes_contexts_whatever_their_verdict() -> None:
    inputs, packed = world(), pack("no_verify")
    tried = {(p["root_id"], p["chunk_id"]): p["verdict"] for p in inputs.pairs}
    chosen = [(s["root_id"], s["chunk_id"]) for s in packed.segments if s["chunk_id"]]
    verdicts = {tried[key] for key in chosen}
    assert "near_duplicate" not in verdicts
    assert len(verdicts) >= 3


@pytest.mark.parametrize(("recipe", "name"), [("random", "drawn"), ("quest", "searched")])
def test_passages_of_the_pool_are_stored_with_their_tokens(recipe: str, name: str) -> None:
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


def test_nextlong_cuts_the_root_without_losing_a_token() -> None:
    inputs, packed = world(), pack("nextlong", meta_chunk_tokens=6)
    roots = {r["root_id"]: [*r["token_ids"], *SEPARATOR] for r in inputs.roots}
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


def test_policylong_takes_verified_contexts_and_hard_negatives() -> None:
    tokens: Counter[str] = Counter()
    for s in pack("policylong").segments:
        tokens[s["role"]] += s["end"] - s["start"]
    # A root whose negatives run out gives the rest of the budget to verified contexts.
    assert 0.3 < tokens["hard_negative"] / tokens["verified"] < 2.0


def test_calibrated_without_controls_is_rejected_in_one_line() -> None:
    inputs = world()
    for pair in inputs.pairs:
        pair.update(calibrated_gain=None, accepted_by=[])
    with pytest.raises(SampleError, match=r"verification\.controls") as error:
        pack("calibrated", inputs)
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
def test_fit_to_budget_keeps_the_given_order(
    lengths: tuple[int, ...], budget: int, taken: list[str]
) -> None:
    assert [c.chunk_id for c in fit_to_budget(contexts(*lengths), budget)] == taken


def test_keywords_follow_rake() -> None:
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


@pytest.mark.parametrize("words", ["नदी के मुहाने", "แม่น้ำ ปากน้ำ", "নদীর মোহনায়", "مُدَرِّس"])
def test_keywords_keep_words_with_vowel_signs_whole(words: str) -> None:
    assert keywords(f"{words}.") == [words]


def test_recipe_does_not_depend_on_the_order_of_rows() -> None:
    import random

    inputs = world()
    for recipe in WORDLESS:
        versions = set()
        for rng in (None, random.Random(5)):
            with tempfile.TemporaryDirectory() as folder:
                settings: Settings = settings_for(TOKENS, recipe=recipe)
                packed = run(folder, inputs.frames(rng), settings, pool=HandPool())
            versions.add(packed.data_version)
        assert len(versions) == 1, recipe


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a recipe or rule for one test, as another package would."""

    def add(registry: Any, name: str, entry: Any) -> None:
        assert name not in registry
        monkeypatch.setitem(registry._registered, name, entry)

    return add


class LongestGain:
    """A rule of another package."""

    needs_controls = False
    gain = "calibrated_gain"
    settings = ()


class Strongest(Recipe):
    """Chooses only the context with the largest gain."""

    rule = "longest_gain"

    def choose(self, material: Material) -> Group:
        best = max(material.group.chosen, key=lambda c: c.priority)
        return replace(material.group, chosen=(best,))


def test_recipe_of_another_package_verifies_by_its_own_rule(register: Any) -> None:
    register(RULES, "longest_gain", LongestGain())
    register(RECIPES, "strongest", Strongest)
    inputs = world()
    for number, pair in enumerate(inputs.pairs):
        if pair["gain"] is not None and number % 2:
            pair["accepted_by"] = [*pair["accepted_by"], "longest_gain"]
    settings = settings_for(
        TOKENS, verification={"compared_rules": ["longest_gain"]}, recipe="strongest"
    )
    with tempfile.TemporaryDirectory() as folder:
        packed = run(folder, inputs.frames(), settings)
    gains: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in accepted(inputs, "longest_gain"):
        gains[pair["root_id"]][pair["chunk_id"]] += pair["calibrated_gain"]
    chosen = {s["root_id"]: s["chunk_id"] for s in packed.segments if s["role"] == "verified"}
    assert len(chosen) >= 5
    assert chosen == {root: gains[root].most_common(1)[0][0] for root in chosen}
    assert packed.summary["dependencies"] == len(accepted(inputs, "longest_gain"))
    dropped = sum(d["n_dependencies"] for d in packed.dropped)
    assert len(packed.dependencies) + dropped == packed.summary["dependencies"]


class Greedy(Recipe):
    """Reads a setting that it does not declare."""

    def __init_subclass__(cls, reads: tuple[str, ...] = ()) -> None:
        cls.reads = reads

    def choose(self, material: Material) -> Group:
        assert material.settings["samples.meta_chunk_tokens"] == 256
        return replace(material.group, chosen=material.retrieved[:1])


def test_recipe_reads_only_the_settings_that_it_declares(register: Any) -> None:
    class Honest(Greedy, reads=("samples.meta_chunk_tokens",)):
        pass

    class Dishonest(Greedy):
        pass

    register(RECIPES, "honest", Honest)
    register(RECIPES, "dishonest", Dishonest)
    assert pack("honest").samples
    with pytest.raises(SampleError, match=r"'dishonest' reads .*meta_chunk_tokens.* not among"):
        pack("dishonest")


def test_recipe_draws_from_the_corpus_only_if_it_declares_it(register: Any) -> None:
    class Undeclared(RECIPES["random"]):  # type: ignore[misc]
        needs_pool = False

    register(RECIPES, "undeclared", Undeclared)
    with pytest.raises(SampleError, match=r"'undeclared' needs the indexed corpus.* `needs_pool`"):
        pack("undeclared")


def test_determined_by_follows_from_the_recipe(register: Any) -> None:
    class Declaring(Greedy, reads=("samples.meta_chunk_tokens", "entropy.alpha")):
        needs_pool = True
        ignores = ("samples.order",)

    register(RECIPES, "declaring", Declaring)
    without = set(LONG_CONTEXT_SAMPLES_STAGE.determined_by(settings_for(TOKENS)))
    paths = set(LONG_CONTEXT_SAMPLES_STAGE.determined_by(settings_for(TOKENS, recipe="declaring")))
    assert without - paths == {"samples.order"}
    assert paths - without == {
        "samples.meta_chunk_tokens",
        "entropy.alpha",
        "corpus.embedding.model",
        "corpus.embedding.dimensions",
        "corpus.embedding.dtype",
        "corpus.embedding.query_prompt",
        "corpus.embedding.query_task",
        "retrieval.leak_check",
        "retrieval.leak_ngram_words",
        "retrieval.max_containment",
    }


def test_recipe_is_rejected_if_its_rule_is_not_evaluated() -> None:
    settings = settings_for(TOKENS, recipe="entropylong")
    verification = settings.verification.model_copy(update={"compared_rules": ("calibrated",)})
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.raises(SampleError, match=r"'plain'.*add it to verification\.compared_rules"),
    ):
        run(
            folder,
            world().frames(),
            settings.model_copy(update={"verification": verification}),
        )
