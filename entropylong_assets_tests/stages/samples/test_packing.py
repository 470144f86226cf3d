"""Packing, checked on the written tables. The oracle uses only the inputs and the convention, and
not the code's groups, bins or orders."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.samples.groups import SampleError
from entropylong_assets.stages.samples.packing import assign
from entropylong_assets_tests.stages.samples.worlds import (
    BOS,
    PAD,
    SEPARATOR,
    SHARD,
    Packed,
    World,
    make_world,
    run,
    settings_for,
)

worlds = st.builds(
    make_world,
    seed=st.integers(0, 10_000),
    n_roots=st.integers(0, 7),
    n_chunks=st.integers(1, 12),
    pairs_per_root=st.integers(0, 24),
    p_accepted=st.sampled_from([0.0, 0.4, 1.0]),
)
options = st.fixed_dictionaries(
    {
        "order": st.sampled_from(["shuffle", "sequence"]),
        "layout": st.sampled_from(["grouped", "interleaved"]),
        "fill": st.sampled_from(["verified_only", "hard_negatives"]),
        "max_uses_per_context": st.sampled_from([None, 1, 2]),
        "max_contexts_per_root": st.sampled_from([None, 2]),
    }
)


def pack(
    world: World, tokens: int, bos: tuple[int, ...] = (BOS,), seed: int | None = None, **choice
):
    rng = None if seed is None else random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        return run(folder, world.frames(rng), settings_for(tokens, **choice), bos)


def check_samples(world: World, packed: Packed, tokens: int, bos: tuple[int, ...]) -> None:
    """Check every promise about a sample from its segments and the inputs."""
    roots = {row["root_id"]: row["token_ids"] for row in world.roots}
    contexts = {row["chunk_id"]: row for row in world.contexts}
    accepted = {(p["root_id"], p["anchor"], p["chunk_id"]): p for p in world.pairs if p["accepted"]}
    by_sample = defaultdict(list)
    for segment in packed.segments:
        by_sample[segment["sample_id"]].append(segment)
    assert [s["sample_id"] for s in packed.samples] == [
        f"{SHARD}-{n:05d}" for n in range(len(packed.samples))
    ]
    assert set(by_sample) == {s["sample_id"] for s in packed.samples}
    root_places, context_places = {}, {}
    for sample in packed.samples:
        ids, segments = sample["input_ids"], by_sample[sample["sample_id"]]
        assert len(ids) == tokens
        assert [s["segment"] for s in segments] == list(range(len(segments)))
        # Tiling: no gap, no overlap, nothing empty, both ends met.
        assert segments[0]["start"] == 0
        assert segments[-1]["end"] == tokens
        assert all(a["end"] == b["start"] for a, b in itertools.pairwise(segments))
        assert all(s["start"] < s["end"] for s in segments)
        share = Counter()
        for s in segments:
            piece = ids[s["start"] : s["end"]]
            share[s["role"]] += len(piece)
            where = (sample["sample_id"], s["start"], s["end"])
            match s["role"]:
                case "bos":
                    assert s["start"] == 0
                    assert piece == [*bos]
                    assert s["root_id"] is s["doc_id"] is s["chunk_id"] is s["source"] is None
                case "root":
                    assert piece == [*roots[s["root_id"]], *SEPARATOR]
                    assert (s["doc_id"], s["chunk_id"]) == (s["root_id"], None)
                    assert s["source"] == "books"
                    assert s["root_id"] not in root_places, "a root was packed twice"
                    root_places[s["root_id"]] = where
                case "verified" | "hard_negative":
                    context = contexts[s["chunk_id"]]
                    assert piece == context["token_ids"]
                    assert s["doc_id"] == context["doc_id"]
                    assert s["source"] == "web"
                    key = (s["root_id"], s["chunk_id"])
                    assert key not in context_places, "a context of a root was packed twice"
                    context_places[key] = (*where, s["role"])
                case "padding":
                    assert s["end"] == tokens
                    assert piece == [PAD] * len(piece)
                case role:
                    pytest.fail(f"unknown role {role}")
        assert share["bos"] == len(bos)
        names = ("n_root", "n_verified", "n_negative", "n_padding")
        roles = ("root", "verified", "hard_negative", "padding")
        assert [sample[name] for name in names] == [share[role] for role in roles]
        assert sample["n_root"], "a sample without a root"
    # Roles, and every context before its root in the same sample.
    for (root_id, chunk_id), (sample_id, _, end, role) in context_places.items():
        tried = [p for p in world.pairs if (p["root_id"], p["chunk_id"]) == (root_id, chunk_id)]
        assert root_places[root_id][0] == sample_id
        assert end <= root_places[root_id][1]
        if role == "verified":
            assert any(p["accepted"] for p in tried)
        else:
            assert tried
            assert all(p["verdict"] in ("low_gain", "surprisal_rose") for p in tried)
    # Dependencies: every accepted pair whose root and context are packed, and no other.
    stored = {(d["root_id"], d["anchor"], d["chunk_id"]): d for d in packed.dependencies}
    assert len(stored) == len(packed.dependencies)
    assert set(stored) == {key for key in accepted if (key[0], key[2]) in context_places}
    for key, d in stored.items():
        sample_id, start, end, _ = context_places[key[0], key[2]]
        assert (d["sample_id"], d["context_start"], d["context_end"]) == (sample_id, start, end)
        ids = packed.samples[int(sample_id.rpartition("-")[2])]["input_ids"]
        assert ids[d["anchor_position"]] == roots[key[0]][d["anchor"]]
        assert d["context_end"] <= d["anchor_position"]
        assert d["distance"] == d["anchor_position"] - d["context_end"]
        for name in ("rank", "gain", "calibrated_gain", "entropy", "entropy_context"):
            assert d[name] == pytest.approx(accepted[key][name], rel=1e-6)


def check_nothing_lost(world: World, packed: Packed) -> None:
    """Every root and dependency is packed once, or dropped once with a reason."""
    packed_roots = {s["root_id"] for s in packed.segments if s["role"] == "root"}
    dropped_roots = [d["root_id"] for d in packed.dropped if d["chunk_id"] is None]
    assert sorted([*packed_roots, *dropped_roots]) == sorted(r["root_id"] for r in world.roots)
    accepted = sum(p["accepted"] for p in world.pairs)
    dropped = sum(d["n_dependencies"] for d in packed.dropped)
    assert len(packed.dependencies) + dropped == accepted
    summary = packed.summary
    assert summary["dependencies"] == accepted
    assert summary["dependencies_packed"] == len(packed.dependencies)
    assert sum(summary["dependencies_dropped"].values()) == dropped
    assert summary["roots"] == len(world.roots)
    assert summary["roots_packed"] == len(packed_roots)
    assert sum(summary["roots_dropped"].values()) == len(dropped_roots)
    roles = Counter(s["role"] for s in packed.segments)
    assert summary["negatives_packed"] == roles["hard_negative"]
    assert summary["samples"] == len(packed.samples)
    lengths = Counter()
    for s in packed.segments:
        lengths[s["role"]] += s["end"] - s["start"]
    assert summary["tokens"] == {role: lengths[role] for role in summary["tokens"]}
    assert sum(lengths.values()) == sum(len(s["input_ids"]) for s in packed.samples)


@settings(max_examples=120, deadline=None)
@given(
    world=worlds,
    choice=options,
    tokens=st.integers(30, 200),
    bos=st.sampled_from([(), (BOS,), (BOS, BOS + 1)]),
)
def test_pack_shard_keeps_every_promise(world, choice, tokens, bos):
    packed = pack(world, tokens, bos, **choice)
    check_samples(world, packed, tokens, bos)
    check_nothing_lost(world, packed)
    if choice["fill"] == "verified_only":
        assert packed.summary["negatives_packed"] == 0


@settings(max_examples=25, deadline=None)
@given(world=worlds, choice=options, tokens=st.integers(30, 200), seed=st.integers(0, 99))
def test_pack_shard_does_not_depend_on_the_order_of_rows(world, choice, tokens, seed):
    straight = pack(world, tokens, **choice)
    assert pack(world, tokens, seed=seed, **choice).data_version == straight.data_version


def test_generated_worlds_are_not_vacuous():
    """The generated worlds must contain the cases that the two properties above are about."""
    seen = Counter()
    for seed in range(20):
        world = make_world(seed, n_roots=6, n_chunks=8, pairs_per_root=5 + seed)
        for tokens, fill in itertools.product((45, 120), ("verified_only", "hard_negatives")):
            packed = pack(world, tokens, fill=fill)
            seen["several samples"] += len(packed.samples) > 1
            seen["several roots in one"] += packed.summary["roots_packed"] > len(packed.samples)
            seen["negatives"] += packed.summary["negatives_packed"] > 0
            seen["padding"] += packed.summary["tokens"]["padding"] > 0
            for drop in packed.dropped:
                seen[drop["reason"]] += 1
            tried = defaultdict(set)
            for pair in world.pairs:
                tried[pair["root_id"], pair["chunk_id"]].add(pair["verdict"])
            seen["accepted and failed"] += any(
                "accepted" in v and len(v) > 1 for v in tried.values()
            )
    wanted = {"several samples", "several roots in one", "negatives", "padding"}
    wanted |= {"no_verified_dependency", "group_too_large", "accepted and failed"}
    assert not wanted - {name for name, n in seen.items() if n > 5}, seen


def roots_and_contexts(packed: Packed) -> list[list[str]]:
    """Roles of contexts and roots of each sample, as letters in their order."""
    by_sample = defaultdict(list)
    for s in packed.segments:
        if s["role"] not in ("bos", "padding"):
            by_sample[s["sample_id"]].append("D" if s["role"] == "root" else "C")
    return list(by_sample.values())


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
def test_layout_orders_contexts_and_roots(layout):
    world = make_world(3, n_roots=5, n_chunks=9, pairs_per_root=14, p_accepted=1.0)
    packed = pack(world, 600, layout=layout)
    (letters,) = roots_and_contexts(packed)
    text = "".join(letters)
    assert text.count("D") == 5
    if layout == "interleaved":
        assert text == "C" * text.count("C") + "DDDDD"
    else:
        assert all(part for part in text.split("D")[:-1]), "a root without contexts before it"
        assert text.endswith("D")
        owner = None
        for s in packed.segments:  # every context is with its own root
            if s["role"] in ("verified", "hard_negative"):
                owner = owner or s["root_id"]
                assert s["root_id"] == owner
            elif s["role"] == "root":
                assert s["root_id"] == owner
                owner = None


def test_interleaved_layout_has_longer_distances():
    world = make_world(3, n_roots=5, n_chunks=9, pairs_per_root=14, p_accepted=1.0)
    means = {}
    for layout in ("grouped", "interleaved"):
        distances = [d["distance"] for d in pack(world, 600, layout=layout).dependencies]
        means[layout] = sum(distances) / len(distances)
    assert means["interleaved"] > 1.5 * means["grouped"]


def context_order(packed: Packed, root_id: str) -> list[str]:
    return [
        s["chunk_id"]
        for s in packed.segments
        if s["root_id"] == root_id and s["role"] in ("verified", "hard_negative")
    ]


def test_sequence_orders_by_the_earliest_anchor():
    world = make_world(5, n_roots=3, n_chunks=10, pairs_per_root=30, p_accepted=0.5)
    packed = pack(world, 2000, order="sequence")
    checked = 0
    for root in world.roots:
        mine = [p for p in world.pairs if p["root_id"] == root["root_id"]]
        chunks = context_order(packed, root["root_id"])

        def place(chunk_id, mine=mine):
            tried = [p for p in mine if p["chunk_id"] == chunk_id]
            serving = [p for p in tried if p["accepted"]] or tried
            return min((p["anchor"], p["rank"]) for p in serving)

        assert [place(c) for c in chunks] == sorted(place(c) for c in chunks)
        checked += len(chunks)
    assert checked > 12


def test_shuffle_depends_on_root_and_seed_only():
    """Guards against a permutation by chunk alone, which would be the same for every root."""
    world = make_world(6, n_roots=2, n_chunks=10, root_tokens=(12, 12), pairs_per_root=110)
    for pair in world.pairs:
        pair["accepted"] = True
        pair["entropy_context"], pair["gain"], pair["calibrated_gain"] = 1.0, 0.8, 0.7
    both = pack(world, 2000, order="shuffle")
    first, second = (context_order(both, root["root_id"]) for root in world.roots)
    assert len(first) == 10
    assert sorted(first) == sorted(second)
    assert first != second
    alone = World(
        world.roots[:1],
        [p for p in world.pairs if p["root_id"] == world.roots[0]["root_id"]],
        world.contexts,
    )
    assert context_order(pack(alone, 2000, order="shuffle"), world.roots[0]["root_id"]) == first
    in_sequence = context_order(pack(alone, 2000, order="sequence"), world.roots[0]["root_id"])
    assert first != in_sequence


def test_group_too_large_drops_the_lowest_gains():
    world = make_world(
        8, n_roots=1, n_chunks=12, root_tokens=(20, 20), chunk_tokens=(8, 8), pairs_per_root=60
    )
    root_id = world.roots[0]["root_id"]
    gain: dict[str, float] = defaultdict(float)
    count = Counter()
    for p in world.pairs:
        if p["accepted"]:
            gain[p["chunk_id"]] += p["calibrated_gain"]
            count[p["chunk_id"]] += 1
    best = sorted(gain, key=gain.__getitem__, reverse=True)
    assert len(best) > 6
    packed = pack(world, 1 + 22 + 4 * 10 + 5)  # room for four contexts of ten tokens, and a bit
    assert set(context_order(packed, root_id)) == set(best[:4])
    assert {d["chunk_id"]: d["n_dependencies"] for d in packed.dropped} == {
        c: count[c] for c in best[4:]
    }
    assert {d["reason"] for d in packed.dropped} == {"group_too_large"}
    assert packed.summary["negatives_packed"] == 0, "a negative took the room of a verified context"


def test_priority_is_the_gain_of_the_rule_in_force():
    """Under the plain rule, ΔI determines the priority, although ΔI* is known."""
    world = make_world(
        8, n_roots=1, n_chunks=2, root_tokens=(20, 20), chunk_tokens=(8, 8), pairs_per_root=0
    )
    first, second = (c["chunk_id"] for c in world.contexts)
    template = make_world(1, n_roots=1, n_chunks=1, pairs_per_root=1, p_accepted=1.0).pairs[0]
    for chunk, gain, calibrated in ((first, 0.9, 0.5), (second, 0.6, 0.55)):
        world.pairs.append(
            template
            | {"root_id": world.roots[0]["root_id"], "anchor": 4, "chunk_id": chunk}
            | {"gain": gain, "calibrated_gain": calibrated, "accepted": True}
        )
    kept = {}
    for rule in ("plain", "calibrated"):
        choice = settings_for(1 + 22 + 10)
        choice = choice.model_copy(
            update={"verification": choice.verification.model_copy(update={"rule": rule})}
        )
        with tempfile.TemporaryDirectory() as folder:
            packed = run(folder, world.frames(), choice)
        (kept[rule],) = context_order(packed, world.roots[0]["root_id"])
    assert kept == {"plain": first, "calibrated": second}


def test_contexts_that_never_fit_drop_their_root():
    world = make_world(9, n_roots=2, n_chunks=4, chunk_tokens=(60, 60), p_accepted=1.0)
    packed = pack(world, 50)
    assert not packed.samples
    assert [d["reason"] for d in packed.dropped] == ["no_context_fits"] * 2
    check_nothing_lost(world, packed)
    assert packed.summary["dependencies"] > 0


def test_a_passage_of_the_sample_is_not_added_as_filler():
    """The same text twice in a window teaches copying."""
    world = make_world(4, n_roots=8, n_chunks=16, pairs_per_root=10, p_accepted=0.3)
    packed = pack(world, 1500)
    chunks = Counter((s["sample_id"], s["chunk_id"]) for s in packed.segments if s["chunk_id"])
    negatives = [s for s in packed.segments if s["role"] == "hard_negative"]
    assert len(packed.samples) == 1
    assert packed.summary["negatives_available"] > len(negatives) > 0
    assert packed.summary["tokens"]["padding"] > 100, "no room, so nothing was left out by choice"
    assert all(chunks[s["sample_id"], s["chunk_id"]] == 1 for s in negatives)


def test_hard_negatives_fill_as_far_as_whole_ones_fit():
    world = make_world(12, n_roots=3, n_chunks=30, pairs_per_root=60, p_accepted=0.1)
    bare = pack(world, 260, fill="verified_only")
    filled = pack(world, 260, fill="hard_negatives")
    assert [s["n_verified"] for s in filled.samples] == [s["n_verified"] for s in bare.samples]
    lengths = {c["chunk_id"]: len(c["token_ids"]) for c in world.contexts}
    checked = 0
    for sample in filled.samples:
        here = [s for s in filled.segments if s["sample_id"] == sample["sample_id"]]
        present = {s["chunk_id"] for s in here}
        roots = {s["root_id"] for s in here}
        verdicts = defaultdict(set)
        for p in world.pairs:
            verdicts[p["root_id"], p["chunk_id"]].add(p["verdict"])
        for (root_id, chunk_id), seen in verdicts.items():
            failed = seen <= {"low_gain", "surprisal_rose"}
            if failed and root_id in roots and chunk_id not in present:
                assert lengths[chunk_id] > sample["n_padding"], "a whole negative would have fitted"
                checked += 1
    assert checked
    assert filled.summary["tokens"]["padding"] < bare.summary["tokens"]["padding"]


def test_root_longer_than_a_sample_is_rejected_in_one_line():
    world = make_world(1, n_roots=1, n_chunks=1, root_tokens=(40, 40), p_accepted=1.0)
    with pytest.raises(SampleError, match=r"root 0+: 43 tokens .* raise samples\.tokens") as error:
        pack(world, 42)
    assert "\n" not in str(error.value)
    assert pack(world, 43).summary["roots_dropped"] == {"no_context_fits": 1}


@pytest.mark.parametrize("missing", ["root", "context"])
def test_contradicting_tables_are_rejected(missing):
    world = make_world(3, n_roots=1, n_chunks=4, pairs_per_root=9, p_accepted=1.0)
    assert any(pair["accepted"] for pair in world.pairs)
    if missing == "root":
        world.roots.clear()
    else:
        world.contexts.clear()
    with pytest.raises(SampleError, match="materialize verified_dependencies again"):
        pack(world, 80)


@given(sizes=st.lists(st.integers(1, 100), max_size=60))
def test_assign_wastes_little(sizes):
    """Each item once, no bin over-full, at most one bin half empty."""
    bins = assign(sizes, 100)
    assert sorted(itertools.chain(*bins)) == list(range(len(sizes)))
    assert all(0 < sum(sizes[i] for i in members) <= 100 for members in bins)
    assert sum(sum(sizes[i] for i in members) <= 50 for members in bins) <= 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=30),
    pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40),
)
def test_assign_keeps_items_apart(sizes, pairs):
    """Two items of a pair share no bin, and none is lost for it."""
    pairs = [(a, b) for a, b in pairs if a != b and max(a, b) < len(sizes)]
    apart: dict[int, set[int]] = defaultdict(set)
    for a, b in pairs:
        apart[a].add(b)
        apart[b].add(a)
    bins = assign(sizes, 100, apart)
    assert sorted(itertools.chain(*bins)) == list(range(len(sizes)))
    assert not any({a, b} <= set(members) for a, b in pairs for members in bins)


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
def test_no_sample_holds_a_root_and_a_context_of_its_document(layout):
    """The model would copy the root from the context of another root, or from a hard negative."""
    world = make_world(5, n_roots=6, n_chunks=12, pairs_per_root=24, p_accepted=0.4)
    root_ids = [row["root_id"] for row in world.roots]
    for number, context in enumerate(world.contexts):
        context["doc_id"] = root_ids[number % len(root_ids)]
    documents = {c["chunk_id"]: c["doc_id"] for c in world.contexts}
    # Retrieval never nominates a chunk of the root itself.
    world.pairs[:] = [p for p in world.pairs if documents[p["chunk_id"]] != p["root_id"]]
    packed = pack(world, 400, layout=layout, fill="hard_negatives")
    with_context = {p["root_id"] for p in world.pairs if p["accepted"]}
    assert {s["root_id"] for s in packed.segments if s["role"] == "root"} == with_context
    for sample in packed.samples:
        own = [s for s in packed.segments if s["sample_id"] == sample["sample_id"]]
        roots = {s["root_id"] for s in own if s["role"] == "root"}
        assert not {s["doc_id"] for s in own if s["chunk_id"]} & roots
