"""Controls and verdicts of a corpus that is cut into other shards, or loses documents.

The failure: controls were drawn by position in the shards, so that a re-cut redrew all of them, and
calibrated gains moved by up to 0.17.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE as STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import WHOLE, TableStore
from entropylong_assets_tests.tiny_world import tiny_settings


def verified(settings: Settings) -> tuple[TableStore, list[str]]:
    """Materialize everything up to the dependencies. Return the tables and the shards."""
    plan = plan_shards(settings.corpus)
    save_plan(open_store(settings.corpus), plan)
    shards = [shard.key for shard in plan.shards]
    for stage in [*STAGE.upstream(), STAGE]:
        owner = settings.corpus if stage.scope == "corpus" else settings
        for shard in shards if stage.partitioned else [WHOLE]:
            partition = Partition(owner, open_store(owner), shard)
            materialize(stage, partition)
            assert stage is STAGE or all(
                r.passed for r in run_checks(stage, partition, set(stage.blocking_checks))
            )
    return open_store(settings), shards


def read(made: tuple[TableStore, list[str]], table: str) -> pl.DataFrame:
    store, shards = made
    return store.read_all(VERIFIED_DEPENDENCIES, shards, table)


def controls(made: tuple[TableStore, list[str]]) -> dict[tuple[str, int], list[str]]:
    rows = read(made, "control_contexts").select("root_id", "control", "chunk_ids")
    return {(root_id, number): chunks for root_id, number, chunks in rows.iter_rows()}


@pytest.fixture(scope="module")
def whole(
    tiny_corpus: Path, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TableStore, list[str]]:
    data = tmp_path_factory.mktemp("whole")
    return verified(tiny_settings(tiny_corpus, data, tiny_models))


def test_other_shards_give_the_same_controls_and_verdicts(
    whole: tuple[TableStore, list[str]],
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    tmp_path: Path,
) -> None:
    settings = tiny_settings(tiny_corpus, tmp_path, tiny_models)
    corpus = settings.corpus.model_copy(update={"shard_rows": 5})
    recut = verified(settings.model_copy(update={"corpus": corpus}))
    assert len(recut[1]) == 6 > len(whole[1]) == 2
    assert controls(recut) == controls(whole)
    assert len(controls(whole)) > 15
    keys = ["root_id", "anchor", "chunk_id"]
    before, after = (
        read(made, "pairs").select(*keys, "verdict", "calibrated_gain").sort(keys)
        for made in (whole, recut)
    )
    assert before.drop("calibrated_gain").equals(after.drop("calibrated_gain"))
    assert before["verdict"].n_unique() > 2
    assert after["calibrated_gain"].to_list() == pytest.approx(
        before["calibrated_gain"].to_list(), abs=1e-4
    )


def test_a_smaller_corpus_keeps_the_controls_whose_chunks_remain(
    whole: tuple[TableStore, list[str]],
    tiny_corpus: Path,
    tiny_models: tuple[str, str],
    tmp_path: Path,
) -> None:
    """A quarter of the documents is removed."""
    (tmp_path / "corpus").mkdir()
    for number, file in enumerate(sorted(tiny_corpus.glob("*.jsonl"))):
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for n, line in enumerate(lines) if (n + number) % 4]
        assert all(json.loads(line) for line in kept)
        (tmp_path / "corpus" / file.name).write_text("\n".join(kept) + "\n", encoding="utf-8")
    smaller = verified(tiny_settings(tmp_path / "corpus", tmp_path / "data", tiny_models))
    documents = smaller[0].read_all(CORPUS_DOCUMENTS, smaller[1], "documents")["doc_id"].to_list()
    before, after = controls(whole), controls(smaller)
    first = {key: (chunks[0], after[key][0]) for key, chunks in before.items() if key in after}
    remaining = [pair for pair in first.values() if pair[0].rpartition("-")[0] in documents]
    assert len(remaining) > 15
    # The candidates have changed too, and none of them can be a control: some controls must change.
    assert sum(one == other for one, other in remaining) / len(remaining) > 0.6
