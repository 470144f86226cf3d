"""An edited copy of a root without spaces between words is rejected and never verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entropylong_assets.project import open_store
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.stages.retrieval.copy_edits import EDITS
from entropylong_assets_tests.stages.retrieval.script_texts import TEXTS
from entropylong_assets_tests.tiny_world import tiny_settings

SHARD = "tiny-00000"


@pytest.mark.parametrize("language", ["Chinese, simplified", "Japanese", "Thai", "DNA"])
def test_edited_copy_without_spaces_is_rejected_as_a_near_duplicate(
    tmp_path: Path, tiny_models: tuple[str, str], language: str
) -> None:
    sentences, unrelated = (part[:3] for part in TEXTS[language])
    documents = {
        "original": "".join(sentences),
        "copy": EDITS["reordered, character changed"](sentences, ""),
        "unrelated": "".join(unrelated),
    }
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [json.dumps({"id": name, "text": text}) for name, text in documents.items()]
    (corpus / "a.jsonl").write_text("\n".join(rows), "utf-8")
    settings = tiny_settings(
        corpus, tmp_path / "data", tiny_models, roots={"fraction": 1.0, "max_tokens": 800}
    )
    save_plan(open_store(settings.corpus), plan_shards(settings.corpus))
    for stage in [*VERIFIED_DEPENDENCIES_STAGE.upstream(), VERIFIED_DEPENDENCIES_STAGE]:
        owner = settings.corpus if stage.scope == "corpus" else settings
        partition = Partition(owner, open_store(owner), SHARD if stage.partitioned else WHOLE)
        materialize(stage, partition)
        # The last stage's checks judge rates that mean little for a random model.
        if stage is not VERIFIED_DEPENDENCIES_STAGE:
            assert all(result.passed for result in run_checks(stage, partition)), stage.name

    store = open_store(settings)
    texts = store.read(CORPUS_DOCUMENTS, SHARD, "documents").select("doc_id", "text")
    names = {text: name for name, text in documents.items()}
    name_of = {doc_id: names[text] for doc_id, text in texts.iter_rows()}
    document_of = dict(
        store.read(CANDIDATE_CONTEXTS, SHARD, "chunks").select("chunk_id", "doc_id").iter_rows()
    )
    verdicts: dict[tuple[str, str], set[str]] = {}
    pairs = store.read(VERIFIED_DEPENDENCIES, SHARD, "pairs")
    for root_id, chunk_id, verdict in pairs.select("root_id", "chunk_id", "verdict").iter_rows():
        pair = name_of[root_id], name_of[document_of[chunk_id]]
        verdicts.setdefault(pair, set()).add(verdict)
    assert verdicts["original", "copy"] == verdicts["copy", "original"] == {"near_duplicate"}
    assert "near_duplicate" not in verdicts["original", "unrelated"]
    assert "near_duplicate" not in verdicts["copy", "unrelated"]
