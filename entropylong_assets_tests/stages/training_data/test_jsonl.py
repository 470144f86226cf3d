"""Samples as text.

Failures looked for: text that is not the corpus' own; text whose tokens are not those that were
scored; an anchor's characters beside its token; a segment, anchor or dependency left out; a root in
pieces or a cut filler whose text overlaps or lacks a character.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.loading import merge
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.check_views import count_samples, documents_by_split
from entropylong_assets.stages.training_data.export import Export, export_training_data
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.segment_texts import _decoded, _Encoded, _piece
from entropylong_assets_tests.stages.training_data.shards import make_shards, make_stage
from entropylong_assets_tests.tiny_world import tiny_values

READERS_PYTHON = os.environ.get("ENTROPYLONG_READERS_PYTHON")
SHARDS = ["tiny-00000", "tiny-00001"]
VARIANTS: list[dict[str, Any]] = [
    {"tokens": 2048},
    {"tokens": 2048, "fill": "corpus", "layout": "interleaved"},
    {"tokens": 2048, "fill": "corpus", "recipe": "nextlong", "meta_chunk_tokens": 64},
]


@pytest.fixture(scope="module")
def values(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> dict[str, Any]:
    """The settings of a dataset whose shards are made."""
    export = {"formats": ["jsonl"], "validation_fraction": 0.5, "file_bytes": 2000}
    result = tiny_values(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models, export=export)
    assert make_shards(make_project(result).dataset) == SHARDS
    return result


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def exported(values: dict[str, Any], request: Any) -> tuple[Settings, Export]:
    settings = make_project(merge(values, {"samples": request.param})).dataset
    for shard in SHARDS:
        make_stage(settings, LONG_CONTEXT_SAMPLES_STAGE, shard)
    return settings, export_training_data(
        open_store(settings), SHARDS, settings, code_version="code"
    )


def lines(export: Export) -> dict[str, dict[str, Any]]:
    """Objects of all files by sample_id."""
    files = sorted(Path(export.uri).glob("jsonl/*.jsonl"))
    assert len(files) > 1, "one file per split would not show that files are continued"
    objects = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    assert len({row["sample_id"] for row in objects}) == len(objects)
    return {row["sample_id"]: row for row in objects}


def rows(settings: Settings, table: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a table of samples, by sample_id."""
    by_sample: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for shard in SHARDS:
        for row in open_store(settings).read(LONG_CONTEXT_SAMPLES, shard, table).to_dicts():
            by_sample[row["sample_id"]].append(row)
    return by_sample


def test_text_is_the_corpus_own_and_its_tokens_were_scored(
    exported: tuple[Settings, Export],
) -> None:
    settings, export = exported
    store, tokenizer = open_store(settings), AutoTokenizer.from_pretrained(settings.scoring.model)
    separator = tokenizer.encode(settings.scoring.separator, add_special_tokens=False)
    documents = {
        row["doc_id"]: row["text"]
        for shard in SHARDS
        for row in store.read(CORPUS_DOCUMENTS, shard, "documents").to_dicts()
    }
    samples, segments = rows(settings, "samples"), rows(settings, "segments")
    objects = lines(export)
    assert objects.keys() == samples.keys()
    roots: dict[tuple[str, str], str] = defaultdict(str)
    n_cut = 0
    for sample_id, line in objects.items():
        kept = [s for s in segments[sample_id] if s["role"] not in ("bos", "padding")]
        ids = samples[sample_id][0]["input_ids"]
        for written, s in zip(line["segments"], kept, strict=True):
            for name in ("role", "root_id", "doc_id", "chunk_id", "source"):
                assert written[name] == s[name]
            assert written["original"]
            assert written["text"] in documents[s["doc_id"]]
            tokens = tokenizer.encode(written["text"], add_special_tokens=False)
            tokens += separator if written["separator"] else []
            if s["role"] == "root":
                roots[sample_id, s["root_id"]] += written["text"]
            # Where a text is cut, its last token can be another; so can the first after a cut.
            if s["role"] == "root" and settings.samples.recipe == "nextlong":
                continue
            stored = ids[s["start"] : s["end"]]
            if s["role"] == "filler" and s["end"] == len(ids):
                n_cut += not written["separator"]
                assert tokenizer.decode(stored).startswith(written["text"])
                continue
            assert written["separator"]
            assert tokens == stored
    assert (n_cut > 0) == (settings.samples.fill == "corpus")
    for (_, root_id), text in roots.items():
        assert text == documents[root_id]


def test_anchors_and_dependencies_are_where_their_tokens_are(
    exported: tuple[Settings, Export],
) -> None:
    settings, export = exported
    tokenizer = AutoTokenizer.from_pretrained(settings.scoring.model)
    samples, dependencies = rows(settings, "samples"), rows(settings, "dependencies")
    n_anchors = n_dependencies = 0
    for sample_id, line in lines(export).items():
        ids = samples[sample_id][0]["input_ids"]
        texts = [segment["text"] for segment in line["segments"]]
        ordered = sorted(
            dependencies[sample_id], key=lambda d: (d["context_start"], d["anchor_position"])
        )
        for written, d in zip(line["dependencies"], ordered, strict=True):
            token = tokenizer.decode([ids[d["anchor_position"]]])
            assert texts[written["root"]][written["start"] : written["end"]] == token
            context, root = line["segments"][written["context"]], line["segments"][written["root"]]
            assert (context["role"], context["chunk_id"]) == ("verified", d["chunk_id"])
            assert (root["role"], root["root_id"]) == ("root", d["root_id"])
            assert written["gain"] == pytest.approx(d["gain"], abs=1e-6)
            assert written["rank"] == d["rank"]
            n_dependencies += 1
        for anchor in line["anchors"]:
            assert line["segments"][anchor["segment"]]["role"] == "root"
            assert anchor["end"] > anchor["start"]
            n_anchors += 1
        named = {(a["segment"], a["start"]) for a in line["anchors"]}
        assert named >= {(d["root"], d["start"]) for d in line["dependencies"]}
    assert n_anchors > n_dependencies
    assert n_anchors > 20
    assert (n_dependencies == 0) == (settings.samples.recipe == "nextlong")


def test_samples_and_documents_are_counted_from_the_files(
    exported: tuple[Settings, Export],
) -> None:
    """What the checks of the stage compare with the manifest and between the splits."""
    settings, export = exported
    counted = count_samples(export.uri, export.manifest)
    by_split = counted.group_by("split").agg(pl.col("samples").sum())
    assert dict(by_split.iter_rows()) == {s: n for s, n in export.manifest["splits"].items() if n}
    documents = documents_by_split(export.uri, export.manifest).drop_nulls()
    segments = [s for rows_of_sample in rows(settings, "segments").values() for s in rows_of_sample]
    assert set(documents["doc_id"]) == {s["doc_id"] for s in segments if s["doc_id"]}


def test_fillers_are_learnt_unless_the_setting_says_no(values: dict[str, Any]) -> None:
    merged = merge(values, {"samples": VARIANTS[1]})
    for shard in SHARDS:
        make_stage(make_project(merged).dataset, LONG_CONTEXT_SAMPLES_STAGE, shard)
    learnt: dict[bool, int] = {}
    for learn in (True, False):
        choice = {"formats": ["parquet", "olmo"], "learn_fillers": learn}
        settings = make_project(merge(merged, {"export": choice})).dataset
        export = export_training_data(open_store(settings), SHARDS, settings, code_version="c")
        parquet_rows = pl.read_parquet(f"{export.uri}/parquet/*.parquet").to_dicts()
        masked = sum(
            file.read_bytes().count(0) for file in Path(export.uri).glob("olmo/*-label-mask/*.npy")
        )
        for row in parquet_rows:
            labels = row["input_ids"].copy()
            for s in row["segments"]:
                if s["role"] == "padding" or (s["role"] == "filler" and not learn):
                    labels[s["start"] : s["end"]] = [-100] * (s["end"] - s["start"])
            assert row["labels"] == labels
            assert row["attention_mask"] == [1] * len(labels), "a filler is read all the same"
        learnt[learn] = sum(label != -100 for row in parquet_rows for label in row["labels"])
        assert masked == sum(len(row["labels"]) for row in parquet_rows) - learnt[learn]
        card = (Path(export.uri) / "README.md").read_text(encoding="utf-8")
        assert ("Fillers (role `filler`) are not learnt" in card) == (not learn)
    assert learnt[False] < learnt[True]
    choice = {"formats": ["nanotron"], "learn_fillers": False}
    settings = make_project(merge(merged, {"export": choice})).dataset
    with pytest.raises(
        ExportError, match="format nanotron has no mask, so fillers would be learnt"
    ):
        export_training_data(open_store(settings), SHARDS, settings, code_version="c")


def test_characters_of_every_token_are_found_in_any_script(tiny_models: tuple[str, str]) -> None:
    """A token can be a part of a character; wherever a text is cut, no character is lost."""
    hf = AutoTokenizer.from_pretrained(tiny_models[0])
    tokenizer = Tokenizer(hf, (), tuple(hf.encode("\n\n", add_special_tokens=False)))
    text = "Zuhören: naïve 日本語 🙂🙂 हिन्दी\tend river  stone"
    ((ids, spans),) = tokenizer.encode_with_spans([text]) or []
    whole = _Encoded(text, np.array(ids), spans)
    assert len(ids) > len(text) / 2
    for cut in range(1, len(ids)):
        first = _piece(whole, np.array(ids[:cut]), 0, tokenizer.separator_ids, 0)
        rest = np.array([*ids[cut:], *tokenizer.separator_ids])
        second = _piece(whole, rest, cut, tokenizer.separator_ids, 1)
        assert first
        assert second
        assert first.text + second.text == text
        assert (first.has_separator, second.has_separator) == (False, True)
    for token, (start, end) in zip(ids, spans, strict=True):
        part = tokenizer.decode([token])
        assert text[start:end] == part or "\ufffd" in part
    assert _piece(whole, np.array([*ids[:3], 0]), 0, tokenizer.separator_ids, 0) is None


@pytest.mark.skipif(not READERS_PYTHON, reason="`datasets` is there: make test-exports")
def test_load_dataset_reads_the_text(exported: tuple[Settings, Export], tmp_path: Path) -> None:
    """As the card says: with the configuration `text`, which the front matter defines."""
    _, export = exported
    code = (
        "import json, sys; from datasets import load_dataset;"
        "loaded = load_dataset(sys.argv[1], 'text', cache_dir=sys.argv[2]);"
        "print(json.dumps([row for rows in loaded.values() for row in rows]))"
    )
    command = [str(READERS_PYTHON), "-c", code, export.uri, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    loaded = {row["sample_id"]: row for row in json.loads(run.stdout.splitlines()[-1])}
    assert loaded == lines(export)


def test_a_tokenizer_that_can_not_tell_characters_decodes() -> None:
    """ByT5 has no fast tokenizer. It has one token per byte, so the test knows the characters."""
    slow = ByT5Tokenizer()
    tokenizer = Tokenizer(slow, (), tuple(slow.encode("\n\n", add_special_tokens=False)))
    assert tokenizer.encode_with_spans(["text"]) is None
    (ids,) = tokenizer.encode(["river stone"])
    decoded = _decoded(np.array([*ids, *tokenizer.separator_ids]), tokenizer, 3)
    assert (decoded.text, decoded.segment, decoded.has_separator) == ("river stone", 3, True)
    assert not decoded.is_original
    assert [decoded.text[a:b] for a, b in decoded.spans] == list("river stone")
