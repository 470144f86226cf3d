"""Figures of the datasheet, against plain Python over the rows that were put into the tables."""

from __future__ import annotations

import statistics

import pytest

from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.figures import dataset_figures
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets_tests.stages.training_data.stores import (
    SHARDS,
    export_settings,
    fill_store,
    table,
    worlds,
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    settings = export_settings(tmp_path_factory.mktemp("data"))
    by_shard = worlds()
    store = fill_store(settings, by_shard)
    return by_shard, store, dataset_figures(store, SHARDS, settings)


def test_counts_and_gains(everything):
    by_shard, _, figures = everything
    pairs = [p for world in by_shard.values() for p in world.pairs]
    accepted = [p for p in pairs if p["accepted"]]
    scored = [p for p in pairs if p["entropy_context"] is not None]
    assert 0 < len(accepted) < len(scored) < len(pairs)
    assert figures["roots_scored"] == sum(len(w.roots) for w in by_shard.values())
    assert figures["documents_drawn"] == figures["roots_scored"]
    assert figures["documents"] == figures["documents_drawn"] + sum(
        len(w.contexts) for w in by_shard.values()
    )
    assert figures["anchors"] == len({(p["root_id"], p["anchor"]) for p in pairs})
    assert figures["candidates"] == len(pairs)
    near = sum(p["verdict"] == "near_duplicate" for p in pairs)
    assert figures["near_duplicates_refused"] == near > 0
    assert figures["pairs_scored"] == len(scored)
    assert figures["pairs_accepted"] == len(accepted)
    assert figures["pairs_accepted_by"] == {
        rule: sum(rule in p["accepted_by"] for p in scored)
        for rule in ("plain", "calibrated", "genuine")
    }
    assert figures["acceptance_rate"] == pytest.approx(len(accepted) / len(scored), abs=1e-6)
    means = {
        "mean_gain": [p["gain"] for p in accepted],
        "mean_calibrated_gain": [p["calibrated_gain"] for p in accepted],
        "mean_surprisal_drop_nats": [p["surprisal"] - p["surprisal_context"] for p in accepted],
    }
    for name, values in means.items():
        assert figures[name] == pytest.approx(statistics.fmean(values), abs=2e-6)
    assert figures["accepted_with_surprisal_rise"] == 0


def test_samples_distances_roles_and_sources(everything):
    _, store, figures = everything
    dependencies = table(store, "dependencies")
    distances = sorted(d["distance"] for d in dependencies)
    assert figures["dependencies"] == len(distances) > 20
    assert figures["distance_tokens"]["median"] == statistics.median(distances)
    p90 = statistics.quantiles(distances, n=10, method="inclusive")[8]
    assert figures["distance_tokens"]["p90"] == pytest.approx(p90)
    assert figures["distance_tokens"]["share_beyond_32k"] == 0
    by_root: dict[str, int] = {}
    for d in dependencies:
        by_root[d["root_id"]] = by_root.get(d["root_id"], 0) + 1
    largest = max(by_root.values())
    assert figures["diversity"]["roots"] == {
        "number": len(by_root),
        "effective": pytest.approx(
            len(dependencies) ** 2 / sum(n**2 for n in by_root.values()), abs=1e-6
        ),
        "largest_share": pytest.approx(largest / len(dependencies), abs=1e-6),
    }
    # A document of these worlds has one chunk, which several roots share.
    chunks = {d["chunk_id"] for d in dependencies}
    assert figures["diversity"]["documents"]["number"] == len(chunks) < len(dependencies)
    assert figures["dependencies_per_root"]["mean"] == pytest.approx(
        statistics.fmean(by_root.values()), abs=1e-6
    )
    assert figures["dependencies_per_root"]["median"] == statistics.median(by_root.values())
    roles: dict[str, int] = {}
    sources: dict[str, int] = {}
    for s in table(store, "segments"):
        roles[s["role"]] = roles.get(s["role"], 0) + s["end"] - s["start"]
        if s["source"]:
            sources[s["source"]] = sources.get(s["source"], 0) + s["end"] - s["start"]
    assert figures["tokens_by_role"] == roles
    assert figures["tokens_by_source"] == sources
    assert sum(figures["share_by_role"].values()) == pytest.approx(1, abs=1e-5)
    assert set(figures["licenses"]) == {"books", "web"}


def test_far_dependencies_are_counted(tmp_path):
    """32K is 32,768 tokens, and a distance of exactly that is not beyond it."""
    settings = export_settings(tmp_path)
    store = fill_store(settings)
    shard = SHARDS[0]
    tables = {
        name: store.read(LONG_CONTEXT_SAMPLES, shard, name)
        for name in ("samples", "segments", "dependencies")
    }
    summary = store.summary(LONG_CONTEXT_SAMPLES, shard)
    far = tables["dependencies"].head(4).to_dicts()
    for row, distance in zip(far, (10, 32_768, 32_769, 65_537), strict=True):
        row["distance"] = distance
    with store.write(LONG_CONTEXT_SAMPLES, shard, fingerprint="t") as writer:
        writer.append("samples", tables["samples"])
        writer.append("segments", tables["segments"])
        writer.append("dependencies", far)
        writer.summary = summary.model_dump()
    distance = dataset_figures(store, [shard], settings)["distance_tokens"]
    assert distance["share_beyond_32k"] == 0.5
    assert distance["share_beyond_64k"] == 0.25
    assert distance["max"] == 65_537


def test_false_acceptance_rate_is_that_of_all_shards_together(everything):
    """Two controls, each the other's reference: accepted ones are counted here by hand."""
    _, store, figures = everything
    passed = trials = 0
    passing: set[str] = set()
    for shard in SHARDS:
        pairs = store.read(VERIFIED_DEPENDENCIES, shard, "pairs").to_dicts()
        before = {(p["root_id"], p["anchor"]): (p["entropy"], p["surprisal"]) for p in pairs}
        controls: dict[tuple, list] = {}
        for c in store.read(VERIFIED_DEPENDENCIES, shard, "controls").to_dicts():
            pair = controls.setdefault((c["root_id"], c["anchor"]), [])
            pair.append((c["entropy"], c["surprisal"]))
        for key, (one, two) in controls.items():
            for held, other in ((one, two), (two, one)):
                entropy, surprisal = before[key]
                gain = (min(entropy, other[0]) - held[0]) / entropy
                passes = gain > 0.4 and held[1] < min(surprisal, other[1])
                passed += passes
                trials += 1
                passing |= {key[0]} if passes else set()
    rate = figures["false_acceptance"]["calibrated"]
    assert passed > 3
    assert rate["trials"] == trials
    assert rate["rate"] == pytest.approx(passed / trials, abs=1e-6)
    assert rate["low"] < rate["rate"] < rate["high"]
    assert len(passing) >= 10, "roots with a trial that passes"
    assert not rate["is_rough"]
    none_passed = figures["false_acceptance"]["genuine"]
    assert (none_passed["rate"], none_passed["is_rough"]) == (0.0, True)
