"""Limits of use, against worlds whose kept uses are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entropylong_assets_tests.stages.samples.worlds import (
    Packed,
    World,
    make_world,
    run,
    settings_for,
)

# Gains of the accepted pairs by (root, chunk); chunks 0 and 1 are of one document.
GAINS = {(0, 0): 0.9, (0, 2): 0.6, (1, 0): 0.8, (1, 1): 0.5, (2, 0): 0.7, (2, 1): 0.85}


def small_world() -> World:
    world = make_world(3, n_roots=3, n_chunks=3, root_tokens=(20, 20), pairs_per_root=0)
    template = make_world(1, n_roots=1, n_chunks=1, pairs_per_root=1, p_accepted=1.0).pairs[0]
    document = world.contexts[0]["doc_id"]
    for number in (0, 1):
        world.contexts[number] |= {"chunk_id": f"{document}-{number}", "doc_id": document}
    for (root, chunk), gain in GAINS.items():
        world.pairs.append(
            template
            | {"root_id": world.roots[root]["root_id"], "anchor": 4}
            | {"chunk_id": world.contexts[chunk]["chunk_id"], "calibrated_gain": gain}
        )
    return world


def uses(world: World, packed: Packed) -> set[tuple[int, int]]:
    roots = {row["root_id"]: n for n, row in enumerate(world.roots)}
    chunks = {row["chunk_id"]: n for n, row in enumerate(world.contexts)}
    return {(roots[d["root_id"]], chunks[d["chunk_id"]]) for d in packed.dependencies}


@pytest.mark.parametrize(
    ("limits", "kept", "dropped_roots"),
    [
        ({}, set(GAINS), 0),
        # Chunk 0 stays with the root that gains most; chunk 1 with root 2, which then has it alone.
        ({"max_uses_per_context": 1}, {(0, 0), (0, 2), (2, 1)}, 1),
        ({"max_uses_per_context": 2}, {(0, 0), (0, 2), (1, 0), (1, 1), (2, 1)}, 0),
        # 0.9, 0.85 and 0.8 are the best of the document.
        ({"max_uses_per_document": 3}, {(0, 0), (0, 2), (2, 1), (1, 0)}, 0),
        ({"max_contexts_per_root": 1}, {(0, 0), (1, 0), (2, 1)}, 0),
        # A use refused by a root's limit does not count for its context: only root 1 refuses (1,
        # 1).
        ({"max_contexts_per_root": 1, "max_uses_per_context": 1}, {(0, 0), (2, 1)}, 1),
    ],
)
def test_uses_of_the_highest_gain_are_kept(
    tmp_path: Path, limits: dict[str, Any], kept: set[tuple[int, int]], dropped_roots: int
) -> None:
    world = small_world()
    packed = run(str(tmp_path), world.frames(), settings_for(400, **limits))
    assert uses(world, packed) == kept
    contexts = [row for row in packed.dropped if row["chunk_id"]]
    assert {row["reason"] for row in packed.dropped} <= {"over_use_limit"}
    assert sum(row["n_dependencies"] for row in packed.dropped) == len(GAINS) - len(kept)
    assert len(contexts) == len(GAINS) - len(kept)
    assert len(packed.dropped) - len(contexts) == dropped_roots
    assert packed.summary["dependencies_dropped"] == (
        {"over_use_limit": len(contexts)} if contexts else {}
    )
