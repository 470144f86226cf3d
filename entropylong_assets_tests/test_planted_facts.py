"""An invented fact, stated in one document and needed in another, with the real demo models.

A pipeline that accepts anything fails here, and so does one that finds nothing.
"""

from __future__ import annotations

import json

import dagster as dg
import polars as pl
import pytest

from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

SHARD = "facts-00000"

STATES = (
    "The province of Drumvale lies between two rivers. Its capital is the town of Ostrimaquel. "
    "Ostrimaquel was founded by weavers, and the Ostrimaquel market is held every spring. "
    "The mayor of Ostrimaquel is elected for five years."
)
NEEDS = (
    "The committee met on the first Monday of the month to plan the journey. Several members "
    "had never left their own valley, and they asked many questions about the roads, the inns "
    "and the weather. The treasurer reported that the fund was sufficient. It was decided that "
    "the group would travel by coach through the hills and arrive in the evening. The province "
    "of Drumvale is best reached from the east, and the capital of Drumvale is the town of "
    "Ostrimaquel, where rooms had been reserved for everyone. Nobody objected to the plan."
)
NOTHING_TO_FIND = (
    "When the frost comes early, gardeners cover the young plants with straw and old blankets. "
    "Water freezes inside the stems and breaks them, so that the leaves turn black within a day. "
    "It helps to water the beds in the afternoon, because wet soil holds more warmth than dry "
    "soil. Some growers light small fires between the rows of trees. Others move the pots under "
    "a roof and bring them out again when the sun has risen. A plant that has been touched by "
    "frost should not be cut back at once, since the dead leaves protect what is below them."
)
UNRELATED = (
    "A violin has four strings, tuned in fifths. The bow is drawn across them, and the sound is "
    "carried through the bridge into the body of the instrument.",
    "Bread dough rises because yeast turns sugar into gas. If the kitchen is cold the dough "
    "needs more time, and it should be covered with a damp cloth.",
    "The library opens at nine and closes at six. Books may be kept for three weeks, and a small "
    "fine is asked for every day after that.",
    "Limestone dissolves slowly in rain water. Over thousands of years this makes caves, and "
    "the dissolved stone is left behind as pillars.",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    folder = tmp_path_factory.mktemp("planted")
    texts = [STATES, NEEDS, NOTHING_TO_FIND, *UNRELATED]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "facts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    project = make_project(
        {
            "data_uri": str(folder / "data"),
            "corpus": {
                "sources": [{"name": "facts", "uri": f"{folder}/facts.jsonl"}],
                "min_chars": 20,
            },
            "roots": {"fraction": 1.0, "min_tokens": 90},
            "entropy": {"min_anchor_position": 16},
            # Scores unrelated contexts too, which rule `genuine` excludes by their text.
            "verification": {"compared_rules": ["plain"]},
            "samples": {"tokens": 2048},
        },
        "quickstart",
    )
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance, with_export=False)
    return open_store(project.dataset)


@pytest.fixture(scope="module")
def ids(store: TableStore) -> dict[str, str]:
    """Text to document id."""
    documents = store.read(CORPUS_DOCUMENTS, SHARD, "documents")
    return dict(documents.select("text", "doc_id").iter_rows())


@pytest.fixture(scope="module")
def pairs(store: TableStore) -> pl.DataFrame:
    return store.read(VERIFIED_DEPENDENCIES, SHARD, "pairs")


@pytest.mark.model
def test_the_stating_chunk_is_accepted_and_outranks_the_unrelated(
    store: TableStore, ids: dict[str, str], pairs: pl.DataFrame
) -> None:
    needed = pairs.filter(root_id=ids[NEEDS])
    stating = needed.filter(pl.col("chunk_id").str.starts_with(ids[STATES]))
    accepted = stating.filter("accepted")
    assert len(accepted) >= 1
    for root_id, anchor, gain in accepted.select("root_id", "anchor", "gain").iter_rows():
        others = needed.filter(
            (pl.col("anchor") == anchor) & ~pl.col("chunk_id").str.starts_with(ids[STATES])
        )
        assert len(others) > 0, root_id
        assert gain > others["gain"].max()
    samples = store.read(LONG_CONTEXT_SAMPLES, SHARD, "dependencies")
    assert set(samples["root_id"]) == {ids[NEEDS]}
    assert samples["chunk_id"].str.starts_with(ids[STATES]).any()


@pytest.mark.model
def test_a_root_with_nothing_to_find_yields_no_dependency(
    ids: dict[str, str], pairs: pl.DataFrame
) -> None:
    lonely = pairs.filter(root_id=ids[NOTHING_TO_FIND])
    assert len(lonely) > 0
    assert lonely["accepted"].sum() == 0
