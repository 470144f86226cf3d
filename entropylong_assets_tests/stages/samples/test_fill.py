"""Filling samples with the corpus, by hand.

Failures looked for: padding that is not filled; a filler between a context's tokens; a filler that
changes which dependencies are packed; a result that depends on the order of rows.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

import entropylong_assets
from entropylong_assets.stages.samples.shard_packing import ROLES
from entropylong_assets_tests.stages.samples.test_recipes import HandPool, world
from entropylong_assets_tests.stages.samples.worlds import Packed, run, settings_for

TOKENS = 700


def pack(folder: Path, fill: str, rng: random.Random | None = None, **choice: Any) -> Packed:
    settings = settings_for(TOKENS, fill=fill, **choice)
    return run(str(folder), world().frames(rng), settings, pool=HandPool())


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
@pytest.mark.parametrize("order", ["shuffle", "sequence"])
def test_fillers_replace_the_padding_and_nothing_else(
    tmp_path: Path, layout: str, order: str
) -> None:
    padded = pack(tmp_path / "padded", "verified_only", layout=layout, order=order)
    filled = pack(tmp_path / "filled", "corpus", layout=layout, order=order)
    padding = padded.summary["tokens"]["padding"]
    assert padding > 100
    assert filled.summary["tokens"] == padded.summary["tokens"] | {"padding": 0, "filler": padding}

    def without_fill(packed: Packed) -> list[tuple[str, str, Any, Any]]:
        """Segments in their order, with their tokens."""
        ids = {sample["sample_id"]: sample["input_ids"] for sample in packed.samples}
        return [
            (s["sample_id"], s["role"], s["chunk_id"], ids[s["sample_id"]][s["start"] : s["end"]])
            for s in packed.segments
            if s["role"] not in ("padding", "filler")
        ]

    def key(packed: Packed) -> list[tuple[Any, ...]]:
        names = ("sample_id", "root_id", "chunk_id", "anchor", "gain")
        return sorted(tuple(row[name] for name in names) for row in packed.dependencies)

    assert without_fill(filled) == without_fill(padded)
    assert key(filled) == key(padded)
    for d in filled.dependencies:
        assert d["distance"] == d["anchor_position"] - d["context_end"] >= 0


def test_only_the_last_filler_of_a_sample_is_cut(tmp_path: Path) -> None:
    filled = pack(tmp_path, "corpus")
    texts = {row["chunk_id"]: row["token_ids"] for row in filled.passages}
    ids = {sample["sample_id"]: sample["input_ids"] for sample in filled.samples}
    cut = 0
    fillers = [s for s in filled.segments if s["role"] == "filler"]
    assert {s["chunk_id"] for s in fillers} == texts.keys()
    for s in fillers:
        placed = ids[s["sample_id"]][s["start"] : s["end"]]
        assert placed == texts[s["chunk_id"]][: len(placed)]
        if len(placed) < len(texts[s["chunk_id"]]):
            assert s["end"] == TOKENS
            cut += 1
        assert s["root_id"] is None
    assert cut
    # Fillers are distractors: some are before a root, not all at the end.
    last_root = {s["sample_id"]: s["start"] for s in filled.segments if s["role"] == "root"}
    assert any(s["start"] < last_root[s["sample_id"]] for s in fillers)


def test_fill_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    once = pack(tmp_path / "once", "corpus")
    again = pack(tmp_path / "again", "corpus", random.Random(5))
    assert once.data_version == again.data_version
    assert once.data_version != pack(tmp_path / "padded", "verified_only").data_version


def test_padding_remains_if_the_passages_end(tmp_path: Path) -> None:
    class Poor(HandPool):
        def fillers(self, groups):
            for number, context in enumerate(super().fillers(groups)):
                if number < 3:
                    yield context

    settings = settings_for(TOKENS, fill="corpus")
    packed = run(str(tmp_path), world().frames(), settings, pool=Poor())
    fillers = [s for s in packed.segments if s["role"] == "filler"]
    assert len(fillers) == 3 * len(packed.samples)
    assert packed.summary["tokens"]["padding"] > 0


def test_report_draws_every_role() -> None:
    """Its sample view fails on a role without a name, and draws one without a colour in black."""
    page = Path(entropylong_assets.__file__).parent / "report" / "page"
    script = (page / "sample_view.js").read_text(encoding="utf-8")
    named = re.findall(r"^  (\w+): \{ name:", script, re.MULTILINE)
    assert set(named) == set(ROLES)
    style = (page / "page.css").read_text(encoding="utf-8")
    assert set(re.findall(r"\.role-(\w+)", style)) >= set(ROLES)
