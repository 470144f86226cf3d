"""Packing an export of text again for another tokenizer.

Failures looked for: a context or root that lost text; a dependency at another word than its anchor;
something dropped without being counted; a document that changed its split; filler that is a copy of
a root; an export that its own checks or readers refuse.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from entropylong_assets.cli.main import app
from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.loading import merge
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.training_data.check_views import count_samples
from entropylong_assets.stages.training_data.export import Export, export_training_data
from entropylong_assets.stages.training_data.manifest import ExportError
from entropylong_assets.stages.training_data.retokenization import retokenize
from entropylong_assets.stages.training_data.verify import verify_export
from entropylong_assets_tests.stages.training_data.shards import make_shards, make_stage
from entropylong_assets_tests.tiny_world import WORDS, document, tiny_values

SHARDS = ["tiny-00000", "tiny-00001"]
FORMATS = ["parquet", "olmo", "mds"]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with a vocabulary of its own and long tokens; no weights are needed."""
    folder = tmp_path_factory.mktemp("other")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([document(seed) for seed in range(50, 60)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    LlamaConfig(vocab_size=bpe.get_vocab_size()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["hard_negatives", "corpus"])
def text(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_models: tuple[str, str],
    tiny_corpus: Path,
    request: Any,
) -> Export:
    """An export of text, its samples filled in either way."""
    values = tiny_values(
        tiny_corpus,
        tmp_path_factory.mktemp("data"),
        tiny_models,
        export={"formats": ["jsonl"], "validation_fraction": 0.5},
        samples={"tokens": 1536, "fill": request.param},
        entropy={"alpha": 0.8},
        verification={"epsilon": 0.02},
    )
    settings = make_project(values).dataset
    assert make_shards(settings) == SHARDS
    return export_training_data(open_store(settings), SHARDS, settings, code_version="code")


def lines(export: Export) -> list[dict[str, Any]]:
    files = sorted(Path(export.uri).glob("jsonl/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def packed_again(text: Export, model: str, out: Path, tokens: int) -> Export:
    settings = make_project({"export": {"formats": FORMATS}}).dataset
    return retokenize(text.uri, model, tokens, settings, str(out))


def rows(export: Export) -> list[dict[str, Any]]:
    return pl.read_parquet(f"{export.uri}/parquet/*.parquet").to_dicts()


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_every_context_is_whole_and_every_anchor_at_its_word(
    text: Export, other_model: str, tmp_path: Path, tokens: int
) -> None:
    export = packed_again(text, other_model, tmp_path, tokens)
    tokenizer = AutoTokenizer.from_pretrained(other_model)
    separator = tokenizer.encode("\n\n", add_special_tokens=False)
    source = lines(text)
    texts: dict[Any, set[str]] = defaultdict(set)  # a filler is cut in one sample, not in another
    for line in source:
        for s in line["segments"]:
            texts[s["role"] == "filler", s["chunk_id"] or s["root_id"]].add(s["text"])
    words: dict[Any, list[tuple[float, str]]] = defaultdict(list)
    for line in source:
        for d in line["dependencies"]:
            anchor = line["segments"][d["root"]]["text"][d["start"] : d["end"]]
            words[d["root_id"], d["chunk_id"]].append((d["gain"], anchor))
    n_dependencies = 0
    for row in rows(export):
        ids = row["input_ids"]
        assert len(ids) == tokens
        end = 0
        for s in row["segments"]:
            assert s["start"] == end
            end = s["end"]
            placed = ids[s["start"] : end]
            if s["role"] == "padding":
                assert set(placed) == {tokenizer.pad_token_id}
                continue
            own = texts[s["role"] == "filler", s["chunk_id"] or s["root_id"]]
            whole = [tokenizer.encode(t, add_special_tokens=False) + separator for t in own]
            assert len(own) == 1 or s["role"] == "filler"
            if s["role"] == "filler" and end == tokens:
                assert placed in [ids[: len(placed)] for ids in whole]
            else:
                assert placed in whole
        assert end == tokens
        for d in row["dependencies"]:
            token = tokenizer.decode([ids[d["anchor_position"]]]).strip()
            gains = [
                (gain, word.strip())
                for gain, word in words[d["root_id"], d["chunk_id"]]
                if gain == pytest.approx(d["gain"], abs=1e-6)
            ]
            # The word that was measured starts with this token, or this token holds its start.
            assert any(word.startswith(token) or word[:1] in token for _, word in gains)
            assert d["context_end"] <= d["anchor_position"]
            assert d["anchor_position"] in row["anchors"]
            n_dependencies += 1
    assert n_dependencies == export.manifest["repacked"]["packed"]["dependencies"] > 20


@pytest.mark.parametrize("tokens", [500, 4096])
def test_what_is_read_is_packed_or_dropped_with_a_reason(
    text: Export, other_model: str, tmp_path: Path, tokens: int
) -> None:
    export = packed_again(text, other_model, tmp_path, tokens)
    counts, source, packed_rows = export.manifest["repacked"], lines(text), rows(export)
    read, packed = Counter(counts["read"]), Counter(counts["packed"])
    roles = Counter(s["role"] for line in source for s in line["segments"])
    assert read["roots"] == roles["root"]
    assert read["dependencies"] == sum(len(line["dependencies"]) for line in source)
    assert read["fillers"] == roles["filler"]
    placed = Counter(s["role"] for row in packed_rows for s in row["segments"])
    assert packed["roots"] == placed["root"]
    assert packed["fillers"] == placed["filler"]
    assert packed["dependencies"] == sum(len(row["dependencies"]) for row in packed_rows)
    for what in ("roots", "contexts", "dependencies"):
        dropped = sum(counts[f"{what}_dropped"].values())
        assert read[what] == packed[what] + dropped, what
    if tokens == 500:
        assert counts["contexts_dropped"].get("group_too_large", 0) > 0
        assert counts["roots_dropped"].get("root_too_long", 0) > 0
    else:
        assert not counts["roots_dropped"]
    card = (Path(export.uri) / "README.md").read_text(encoding="utf-8")
    assert f"measured by {text.manifest['made_from']['model'][:8]}"[:20] in card.replace("\\", "")
    assert export.manifest["made_from"]["export"] == text.version


def test_export_is_whole_counted_and_keeps_its_splits(
    text: Export, other_model: str, tmp_path: Path
) -> None:
    export = packed_again(text, other_model, tmp_path, 2048)
    assert verify_export(export.uri).faults == ()
    counted = count_samples(export.uri, export.manifest)
    for name in FORMATS:
        by_split = counted.filter(format=name).group_by("split").agg(pl.col("samples").sum())
        assert dict(by_split.iter_rows()) == {
            split: n for split, n in export.manifest["splits"].items() if n
        }
    files = sorted(Path(text.uri).glob("jsonl/*.jsonl"))
    before = {
        s["root_id"]: file.name.partition("-")[0]
        for file in files
        for line in file.read_text("utf-8").splitlines()
        for s in json.loads(line)["segments"]
        if s["role"] == "root"
    }
    for file in sorted(Path(export.uri).glob("parquet/*.parquet")):
        for row in pl.read_parquet(file).to_dicts():
            for s in row["segments"]:
                if s["role"] == "root":
                    assert before[s["root_id"]] == file.name.partition("-")[0]
    again = packed_again(text, other_model, tmp_path / "again", 2048)
    assert again.manifest == export.manifest, "the same bytes again"
    assert packed_again(text, other_model, tmp_path, 2048).reused


def test_command_prints_what_it_dropped(text: Export, other_model: str, tmp_path: Path) -> None:
    arguments = ["retokenize", text.uri, "--tokenizer", other_model, "--tokens", "500"]
    run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--format", "olmo"])
    assert run.exit_code == 0, run.output
    assert "dependencies" in run.output
    assert "dropped: group_too_large" in run.output
    (version,) = tmp_path.iterdir()
    assert (version / "olmo" / "dataset.json").exists()
    refused = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path), "--format", "jsonl"])
    assert refused.exit_code == 2
    nothing = CliRunner().invoke(
        app, ["retokenize", str(version), *arguments[2:], "--out", str(tmp_path)]
    )
    assert nothing.exit_code == 2


def test_roots_in_pieces_are_refused(
    tmp_path: Path, tiny_models: tuple[str, str], tiny_corpus: Path, other_model: str
) -> None:
    values = tiny_values(tiny_corpus, tmp_path, tiny_models, export={"formats": ["jsonl"]})
    make_shards(make_project(values).dataset)
    cut = {"recipe": "nextlong", "meta_chunk_tokens": 32}
    settings = make_project(merge(values, {"samples": cut})).dataset
    for shard in SHARDS:
        make_stage(settings, LONG_CONTEXT_SAMPLES_STAGE, shard)
    export = export_training_data(open_store(settings), SHARDS, settings, code_version="code")
    with pytest.raises(ExportError, match="a root is in pieces"):
        packed_again(export, other_model, tmp_path / "out", 2048)


def test_words_of_the_corpus_are_several_tokens_here(other_model: str) -> None:
    """Otherwise no anchor would have moved."""
    tokenizer = AutoTokenizer.from_pretrained(other_model)
    assert any(len(tokenizer.encode(f" {word}", add_special_tokens=False)) > 1 for word in WORDS)
