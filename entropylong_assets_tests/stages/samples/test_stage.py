"""The stage as declared: what makes samples stale, what they record, and what is rejected.

Failures looked for: a setting that changes the samples and leaves them up to date; a setting that
makes them stale needlessly; samples without a record of the index that they were drawn from.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Section, Settings, SettingsError
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.table import ChunkTable
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.leak_check import WordNgrams
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.pool import IndexPool
from entropylong_assets.stages.samples.settings import BUILT_IN_RECIPES
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE as STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.setting_reads import computation_reads, leaves
from entropylong_assets_tests.tiny_world import tiny_settings

Models = tuple[str, str]

SHARD, OTHER_SHARD = "tiny-00000", "tiny-00001"

RECIPES = (None, *BUILT_IN_RECIPES)
FROM_POOL = ("random", "quest")

WITHOUT_EFFECT = {
    "scoring.trust_remote_code": "whether the tokenizer may be loaded, not what it is",
    "verification.compared_rules": "whether the verdicts of the recipe's rule are stored, else an "
    "error; which verdicts, the data version of the input says",
    "corpus.embedding.trust_remote_code": "whether the embedder may be loaded, not what it is",
    "corpus.embedding.device": "where vectors are computed and compared",
    "corpus.embedding.batch_size": "how many texts are embedded at once; here it is one query",
    "corpus.embedding.chunk_tokens": "how the chunks of the index were cut, which its tag covers; "
    "queries are not cut by it",
    "corpus.embedding.document_prompt": "how chunks were embedded, which the index' tag covers",
    "corpus.embedding.document_task": "how chunks were embedded, which the index' tag covers",
}
"""Settings that the computation reads although they can't change the samples, and why not."""


@pytest.fixture(scope="module")
def data(tiny_corpus: Path, tiny_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all inputs of samples, and samples without a recipe, for two shards."""
    folder = tmp_path_factory.mktemp("samples")
    settings = tiny_settings(tiny_corpus, folder, tiny_models)
    plan = plan_shards(settings.corpus)
    save_plan(open_store(settings.corpus), plan)
    assert [shard.key for shard in plan.shards] == [SHARD, OTHER_SHARD]
    for stage in (*STAGE.upstream(), STAGE):
        chosen = settings.corpus if stage.scope == "corpus" else settings
        for shard in (SHARD, OTHER_SHARD) if stage.partitioned else (WHOLE,):
            partition = Partition(chosen, open_store(chosen), shard)
            materialize(stage, partition)
            for result in run_checks(stage, partition):
                assert result.passed or not result.check.blocking, result.examples
    return folder


@pytest.fixture
def partition_for(data: Path, tiny_corpus: Path, tiny_models: Models) -> Any:
    def partition(recipe: str | None, **samples: Any) -> Partition:
        chosen = {"recipe": recipe, **samples}
        settings = tiny_settings(tiny_corpus, data, tiny_models, samples=chosen)
        return Partition(settings, open_store(settings), SHARD)

    return partition


def changed(partition: Partition, path: str, value: Any) -> Partition:
    """The partition with another value of one setting."""

    def replaced(section: Section, names: list[str]) -> Any:
        name, *rest = names
        new = replaced(getattr(section, name), rest) if rest else value
        return section.model_copy(update={name: new})

    settings: Settings = replaced(partition.settings, path.split("."))
    return Partition(settings, partition.store, partition.shard)


@pytest.mark.parametrize(
    ("recipe", "fill"), [*((recipe, "hard_negatives") for recipe in RECIPES), (None, "corpus")]
)
def test_determined_by_lists_what_the_computation_reads(
    partition_for: Any, recipe: str | None, fill: str
) -> None:
    partition = partition_for(recipe, fill=fill)
    reads = computation_reads(STAGE, partition)
    determining = leaves(partition.settings, STAGE.determined_by(partition.settings))
    assert determining - reads == set(), "a change makes samples stale needlessly"
    assert reads - determining - WITHOUT_EFFECT.keys() == set(), "a change goes unnoticed"
    if recipe == "quest":
        assert WITHOUT_EFFECT.keys() - reads == {"verification.compared_rules"}
    if recipe == "entropylong":
        assert "verification.compared_rules" in reads


CHANGES = {
    "samples.recipe": "no_verify",
    "samples.tokens": 2048,
    "samples.order": "sequence",
    "samples.layout": "grouped",
    "samples.fill": "verified_only",
    "samples.meta_chunk_tokens": 8,
    "samples.max_uses_per_context": 2,
    "samples.max_uses_per_document": 2,
    "samples.max_contexts_per_root": 2,
    "scoring.bos": "never",
    "scoring.separator": "\n",
    "verification.rule": "plain",
    "corpus.embedding.dimensions": 8,
    "corpus.embedding.dtype": "bfloat16",
    "corpus.embedding.query_prompt": "query: ",
    "corpus.embedding.query_task": "query",
    "retrieval.leak_check": "another",
    "retrieval.leak_ngram_words": 3,
    "retrieval.max_containment": 0.9,
    "seed": 7,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_changed_setting_makes_samples_stale_if_it_determines_them(
    partition_for: Any, recipe: str | None
) -> None:
    partition = partition_for(recipe)
    materialize(STAGE, partition)
    assert stale_reason(STAGE, partition) is None
    determining = STAGE.determined_by(partition.settings)
    models = {"scoring.model", "corpus.embedding.model"}
    assert set(determining) - models <= CHANGES.keys()
    for path, value in CHANGES.items():
        if path == "samples.recipe" and value == recipe:
            value = "policylong"
        reason = stale_reason(STAGE, changed(partition, path, value))
        assert (reason is not None) == (path in determining), path
        if path in determining and path != "samples.recipe":
            assert reason == f"setting {path} has changed"
    leak_check = {f"retrieval.{n}" for n in ("leak_check", "leak_ngram_words", "max_containment")}
    assert (leak_check <= set(determining)) == (recipe in FROM_POOL)


@pytest.mark.parametrize("recipe", FROM_POOL)
@pytest.mark.parametrize(
    ("setting", "value", "leak_ngram_words", "max_containment"),
    [("leak_ngram_words", 1, 8, 0.5), ("max_containment", 0.01, 2, 0.9)],
)
def test_the_leak_check_decides_what_is_drawn(
    partition_for: Any,
    recipe: str,
    setting: str,
    value: Any,
    leak_ngram_words: int,
    max_containment: float,
) -> None:
    """All texts of the tiny corpus consist of the same few words, so short n-grams of any chunk
    occur in nearly any root. One setting alone leaves some roots without a context."""
    partition = partition_for(recipe)
    partition = changed(partition, "retrieval.leak_ngram_words", leak_ngram_words)
    partition = changed(partition, "retrieval.max_containment", max_containment)
    packed = materialize(STAGE, partition).manifest.summary["roots_packed"]
    strict = changed(partition, f"retrieval.{setting}", value)
    assert materialize(STAGE, strict).manifest.summary["roots_packed"] < packed


@pytest.mark.parametrize("recipe", RECIPES)
def test_samples_record_the_index_that_they_are_drawn_from(
    partition_for: Any, recipe: str | None
) -> None:
    partition = partition_for(recipe)
    store, shard = partition.store, partition.shard
    made_from = materialize(STAGE, partition).manifest.determinants
    candidates = store.require(CANDIDATE_CONTEXTS, shard)
    if recipe in FROM_POOL:
        assert made_from["index"] == candidates.summary["index"]
        assert made_from["embedder"].startswith(partition.corpus.embedding.model)
    else:
        assert not {"index", "embedder"} & made_from.keys()
    tables = {name: store.read(CANDIDATE_CONTEXTS, shard, name) for name in candidates.tables}
    for index in ("index-0123", candidates.summary["index"]):
        with store.write(CANDIDATE_CONTEXTS, shard, fingerprint="another index") as writer:
            for name, rows in tables.items():
                writer.append(name, rows)
            writer.summary = {**candidates.summary, "index": index}
        is_other = index != candidates.summary["index"]
        wanted = "index has changed" if is_other and recipe in FROM_POOL else None
        assert stale_reason(STAGE, partition) == wanted


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tokens", [512, 4096])
def test_checks_pass_under_every_recipe(
    partition_for: Any, recipe: str | None, tokens: int
) -> None:
    partition = partition_for(recipe, tokens=tokens)
    materialization = materialize(STAGE, partition)
    assert materialization.manifest.summary["samples"] > 0
    assert len(materialization.metadata["preview"]) == min(
        5, materialization.manifest.summary["dependencies_packed"]
    )
    outcomes = {result.check.name: result.faulty_rows for result in run_checks(STAGE, partition)}
    assert outcomes == dict.fromkeys((check.name for check in STAGE.checks), 0)


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
@pytest.mark.parametrize("recipe", [None, "random", "nextlong"])
def test_fill_of_the_corpus_leaves_no_padding(
    partition_for: Any, recipe: str | None, layout: str
) -> None:
    """Failures: padding remains; a filler is of one of the sample's documents, or a near-duplicate
    of one of its roots; a chunk occurs twice; tokens are not those of the chunk's text."""
    partition = partition_for(recipe, tokens=2048, fill="corpus", layout=layout)
    materialization = materialize(STAGE, partition)
    assert materialization.manifest.summary["tokens"]["padding"] == 0
    assert materialization.manifest.summary["tokens"]["filler"] > 200
    assert materialization.manifest.summary["utilisation"] == 1
    assert materialization.manifest.determinants["index"]
    outcomes = {result.check.name: result.faulty_rows for result in run_checks(STAGE, partition)}
    assert outcomes == dict.fromkeys((check.name for check in STAGE.checks), 0)

    store = partition.store
    segments = store.read(LONG_CONTEXT_SAMPLES, SHARD, "segments")
    shards = (SHARD, OTHER_SHARD)
    documents = pl.concat(store.read(CORPUS_DOCUMENTS, shard, "documents") for shard in shards)
    text_of = dict(documents.select("doc_id", "text").iter_rows())
    chunks = pl.concat(store.read(CHUNK_EMBEDDINGS, shard, "chunks") for shard in shards)
    span_of = {row["chunk_id"]: row for row in chunks.iter_rows(named=True)}
    tokenizer = load_tokenizer(partition.settings.scoring)
    retrieval = partition.settings.retrieval
    ids_of = dict(
        store.read(LONG_CONTEXT_SAMPLES, SHARD, "samples")
        .select("sample_id", "input_ids")
        .iter_rows()
    )
    for (sample_id,), rows in segments.group_by("sample_id"):
        fillers, others = rows.filter(role="filler"), rows.filter(pl.col("role") != "filler")
        assert len(fillers)
        assert fillers["root_id"].null_count() == len(fillers)
        assert fillers["chunk_id"].is_unique().all()
        assert not set(fillers["doc_id"]) & set(others["doc_id"])
        roots = [text_of[doc_id] for doc_id in rows.filter(role="root")["doc_id"].unique()]
        for filler in fillers.iter_rows(named=True):
            chunk = span_of[filler["chunk_id"]]
            assert chunk["doc_id"] == filler["doc_id"]
            text = text_of[chunk["doc_id"]][chunk["start"] : chunk["end"]]
            for root in roots:
                assert WordNgrams(retrieval, root).containment(text) < retrieval.max_containment
            whole = [*tokenizer.encode([text])[0], *tokenizer.separator_ids]
            placed = list(ids_of[sample_id][filler["start"] : filler["end"]])
            assert placed == whole[: len(placed)]
            assert placed == whole or filler["end"] == 2048


def test_fill_of_the_corpus_leaves_padding_if_the_leak_check_excludes_all(
    partition_for: Any,
) -> None:
    """If no chunk is left, the rest of a sample is padding, which is counted."""
    partition = partition_for(None, tokens=2048, fill="corpus")
    strict = changed(partition, "retrieval.leak_ngram_words", 1)
    tokens = materialize(STAGE, strict).manifest.summary["tokens"]
    assert tokens["filler"] == 0
    assert tokens["padding"] > 200


def test_dependencies_reconcile_follows_the_rule_of_the_recipe(partition_for: Any) -> None:
    """Samples made under one recipe have the wrong dependencies under another."""
    materialize(STAGE, partition_for("entropylong"))
    faulty = {}
    for recipe in ("entropylong", "calibrated", "random"):
        (result,) = run_checks(STAGE, partition_for(recipe), {"dependencies_reconcile"})
        faulty[recipe] = result.faulty_rows
    assert faulty["entropylong"] == 0
    assert faulty["calibrated"] > 0
    assert faulty["random"] > 0


@pytest.mark.parametrize("recipe", [None, "random"])
def test_metadata_links_samples_to_the_shards_of_their_contexts(
    partition_for: Any, recipe: str | None
) -> None:
    partition = partition_for(recipe, tokens=1024)
    store = partition.store
    materialization = materialize(STAGE, partition)
    header, _, *lines = materialization.metadata["samples_and_shards"].splitlines()
    assert header == "| sample | roots from | contexts from |"
    columns = ["chunk_id", "shard"]
    known = dict(store.read(VERIFIED_DEPENDENCIES, SHARD, "contexts", columns).iter_rows())
    known |= dict(store.read(LONG_CONTEXT_SAMPLES, SHARD, "passages", columns).iter_rows())
    segments = store.read(LONG_CONTEXT_SAMPLES, SHARD, "segments").drop_nulls("chunk_id")
    url = "/assets/corpus/corpus_documents?view=partitions&partition="
    expected = []
    for (sample,), rows in segments.group_by("sample_id", maintain_order=True):
        shards = sorted({known[chunk_id] for chunk_id in rows["chunk_id"]})
        links = ", ".join(f"[{shard}]({url}{shard})" for shard in shards)
        expected.append(f"| {sample} | [{SHARD}]({url}{SHARD}) | {links} |")
    assert lines == expected
    assert OTHER_SHARD in "".join(lines)


def test_settings_are_rejected_if_a_sample_can_not_hold_a_root(
    tmp_path: Path, tiny_models: Models
) -> None:
    for tokens in (399, 400):
        with pytest.raises(SettingsError) as error:
            tiny_settings(tmp_path, tmp_path, tiny_models, samples={"tokens": tokens})
        assert f"samples.tokens ({tokens}) must be larger than the longest root" in str(error.value)
        assert "roots.max_tokens (400)" in str(error.value)
        assert "\n" not in str(error.value)
    tiny_settings(tmp_path, tmp_path, tiny_models, samples={"tokens": 401})


def test_settings_are_rejected_if_the_rule_of_the_recipe_is_not_evaluated(
    tmp_path: Path, tiny_models: Models
) -> None:
    def settings(recipe: str, **verification: Any) -> Settings:
        chosen = {"samples": {"recipe": recipe}, "verification": verification}
        return tiny_settings(tmp_path, tmp_path, tiny_models, **chosen)

    with pytest.raises(SettingsError, match=r"'plain'.* add it to verification\.compared_rules"):
        settings("entropylong", compared_rules=["calibrated"])
    settings("entropylong", rule="plain", compared_rules=[])
    settings("calibrated", compared_rules=[])
    settings("policylong", compared_rules=[])
    with pytest.raises(SettingsError, match=r"samples\.recipe: no recipe 'mine'; there are "):
        settings("mine")


def test_evidence_spans_are_at_their_place_in_the_sample(world: World) -> None:
    tokenizer = load_tokenizer(world.settings.scoring)
    spans = 0
    for shard in world.shards:
        samples = world.store.read(LONG_CONTEXT_SAMPLES, shard, "samples")
        token_ids = dict(samples.select("sample_id", "input_ids").iter_rows())
        chunks = world.store.read(CANDIDATE_CONTEXTS, shard, "chunks")
        texts = dict(chunks.select("chunk_id", "text").iter_rows())
        evidence = world.store.read(VERIFIED_DEPENDENCIES, shard, "evidence")
        dependencies = world.store.read(LONG_CONTEXT_SAMPLES, shard, "dependencies")
        key = ["root_id", "anchor", "chunk_id"]
        for row in dependencies.join(evidence, on=key).iter_rows(named=True):
            span = token_ids[row["sample_id"]][row["evidence_start"] : row["evidence_end"]]
            text = texts[row["chunk_id"]][row["start"] : row["end"]]
            assert tokenizer.decode(span).strip() == text
            assert row["kind"] == row["kind_right"]
            spans += 1
        assert len(dependencies.filter(pl.col("kind").is_null())) == 0
    assert spans > 5


@pytest.mark.parametrize("recipe", FROM_POOL)
def test_announced_roots_get_the_same_passages_with_few_requests(
    partition_for: Any, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Root by root, every root costs a search of the whole table and several reads."""
    partition = partition_for(recipe)
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(ChunkTable, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(ChunkTable, name, call)

    counted("search")
    counted("fetch")
    together = materialize(STAGE, partition).manifest
    n_roots, few = together.summary["roots_packed"], dict(calls)
    assert n_roots > 2
    calls.clear()
    monkeypatch.setattr(IndexPool, "announce", lambda *_: None)
    assert materialize(STAGE, partition).manifest.data_version == together.data_version
    assert calls["fetch"] > n_roots >= few["fetch"] > 0
    if recipe == "quest":  # roots are read twice: to plan the samples, and to lay them out
        assert few["search"] <= 2 < 2 * n_roots <= calls["search"]
