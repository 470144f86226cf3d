"""A corpus whose texts and names look like SQL, markup, paths or special tokens, in all stages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from entropylong_assets.cli.output import count_checks
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.report.show import show_sample
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stage_names import path_of
from entropylong_assets_tests.tiny_world import document, tiny_values

SCRIPT = "<script>document.body.dataset.hacked='yes'</script><img src=x onerror=\"hacked=1\">"
SQL = "'); DROP TABLE documents; -- '' \" \\' $$ {shard} %s ? $1"
SHELL = "$(touch hacked) `touch hacked` ; touch hacked | touch hacked && ../../hacked \\"
MARKDOWN = "| a | [x](javascript:hacked) ![y](http://h.invalid/z) ```\n# h\n---\n"
SPECIAL = "<s></s><|endoftext|><|im_start|>system<|im_end|><bos><eos>[SEP][CLS][PAD][MASK]"
TEXTS = {
    "script": f"{SCRIPT} {document(1)} {SCRIPT}",
    "sql": f"{SQL} {document(2)} {SQL}",
    "shell": f"{SHELL} {document(3)} {SHELL}",
    "markdown": f"{MARKDOWN} {document(4)} {MARKDOWN}",
    "special": f"{SPECIAL} {document(5)} {SPECIAL}",
    "emoji": "😀🏳️‍🌈👩‍👩‍👧‍👦🇺🇳" * 12,
    "right to left": "\u202eשלום עולם, זהו מסמך ארוך מאוד. مرحبا بالعالم هذا نص طويل. " * 6,
    "nul": document(6).replace(" ", "\0 ", 9),
    "one line": document(7).replace("\n", " "),
    "wide spaces": document(8).replace(" ", " \u3000\u00a0 "),
}
ID = f"../../{SQL}{SCRIPT}\n\x1b[2J\u202e"
"""Of every document: ids of a source need not be unique."""
FILE = 'o\'brien "x" <b>; $(touch hacked) [1] & é.jsonl'


@dataclass(frozen=True)
class Hostile:
    """A project over the hostile corpus, with all stages materialized."""

    project: Project
    instance: dg.DagsterInstance
    shard: str
    folder: Path
    """Folder that contains the corpus and the data."""

    @property
    def settings(self) -> Settings:
        return self.project.dataset

    @property
    def store(self) -> TableStore:
        return open_store(self.settings)


@pytest.fixture(scope="module")
def hostile(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]
) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    corpus = folder / 'it\'s a "corpus"; -- <i>'
    corpus.mkdir()
    texts = [*TEXTS.values(), *(document(seed) for seed in range(300, 308))]
    lines = [json.dumps({"text": text, "id": ID}) for text in texts]
    lines.append(json.dumps({"text": "   \u2003\n\t ", "id": ID}))
    (corpus / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {
        "name": "tiny",
        "uri": str(corpus),
        "id_field": "id",
        "license": f"{SCRIPT} | {SQL}",
    }
    data = folder / 'it\'s "data"; -- <i> $(touch hacked)'
    values = tiny_values(corpus, data, tiny_models)
    values["corpus"]["sources"] = [source]
    values["roots"] |= {"fraction": 1.0, "max_tokens": 900}
    project = make_project(values)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(project.corpus, instance)
        run_project(project, instance)
        yield Hostile(project, instance, plan.shards[0].key, folder)
    files = {path for path in folder.rglob("*") if path.is_file()}
    outside = {path for path in files if not path.is_relative_to(data)}
    assert outside == before.keys(), "something was written outside the data folder"
    assert all(path.read_bytes() == content for path, content in before.items())


def test_every_text_goes_through_every_stage_and_every_check_passes(hostile: Hostile) -> None:
    project = hostile.project
    counts = [count_checks(project, settings) for settings in (project.corpus, project.dataset)]
    passed, evaluated = (sum(column) for column in zip(*counts, strict=True))
    assert passed == evaluated > 30
    documents = hostile.store.read(CORPUS_DOCUMENTS, hostile.shard, "documents")
    assert len(documents) == len(TEXTS) + 8
    dropped = hostile.store.read(CORPUS_DOCUMENTS, hostile.shard, "dropped")
    assert dropped["reason"].to_list() == ["empty"]
    assert documents["external_id"].n_unique() == 1
    assert all(name.isprintable() for name in documents["external_id"])
    assert documents["doc_id"].str.contains(r"^[0-9a-f]{32}$").all()
    # All documents are drawn, and those that can be scored are roots.
    roots = hostile.store.read(ENTROPY_SCORES, hostile.shard, "roots")
    not_roots = hostile.store.read(ENTROPY_SCORES, hostile.shard, "dropped")
    assert len(roots) + len(not_roots) == len(documents)
    assert len(roots) > 10
    assert len(hostile.store.read(LONG_CONTEXT_SAMPLES, hostile.shard, "samples")) >= 1


def test_no_name_of_a_file_or_folder_is_made_of_the_corpus(hostile: Hostile) -> None:
    names = {
        part
        for path in Path(hostile.settings.data_uri).rglob("*")
        for part in path.relative_to(hostile.settings.data_uri).parts
    }
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names), names
    assert not list(hostile.folder.rglob("hacked"))
    assert not Path("hacked").exists()


def test_text_that_spells_special_tokens_is_scored_as_text(hostile: Hostile) -> None:
    tokenizer = load_tokenizer(hostile.settings.scoring)
    special = set(tokenizer.hf_tokenizer.all_special_ids)
    store, shard = hostile.store, hostile.shard
    for tables, table in (
        (ENTROPY_SCORES, "roots"),
        (VERIFIED_DEPENDENCIES, "contexts"),
        (VERIFIED_DEPENDENCIES, "control_contexts"),
    ):
        ids = store.read(tables, shard, table, ["token_ids"])["token_ids"].explode()
        assert len(ids) > 0
        assert not special & set(ids.to_list())
    roots = store.read(ENTROPY_SCORES, shard, "roots")
    decoded = [tokenizer.decode(ids) for ids in roots["token_ids"]]
    assert any(SPECIAL in text for text in decoded)
    samples = store.read(LONG_CONTEXT_SAMPLES, shard, "samples")["input_ids"]
    padding = store.read(LONG_CONTEXT_SAMPLES, shard, "segments").filter(role="padding")
    n_padding = int((padding["end"] - padding["start"]).sum())
    pad_id = store.summary(LONG_CONTEXT_SAMPLES, shard).tokenizer.pad_id
    ends = sum(ids.to_list().count(pad_id) for ids in samples)
    assert ends == n_padding


def test_chunks_contain_their_text_unchanged(hostile: Hostile) -> None:
    texts = dict(
        hostile.store.read(CORPUS_DOCUMENTS, hostile.shard, "documents")
        .select("doc_id", "text")
        .iter_rows()
    )
    table = open_table(hostile.store)
    rows = pl.concat(table.scan(["doc_id", "start", "end", "text", "chunk_id"]))
    assert set(rows["doc_id"]) == set(texts)
    for row in rows.iter_rows(named=True):
        assert row["text"] == texts[row["doc_id"]][row["start"] : row["end"]]


@pytest.mark.parametrize("value", [SQL, SCRIPT, "'", "''", "\\'", "x' OR '1'='1", "a\0b", "é\n'"])
def test_no_value_becomes_sql_of_the_table(hostile: Hostile, tmp_path: Path, value: str) -> None:
    """A quote that ended its literal would match, or delete, other rows."""
    store = TableStore(str(tmp_path))
    shutil.copytree(f"{hostile.store.corpus_uri}/lancedb", f"{store.corpus_uri}/lancedb")
    table = open_table(store)
    before = table.rows_by_shard()
    assert table.fetch([value], ["chunk_id"]).is_empty()
    assert list(table.scan(["chunk_id"], value)) == [] or all(
        batch.is_empty() for batch in table.scan(["chunk_id"], value)
    )
    table.delete_documents(hostile.shard, [value])
    table.delete_documents(value, ["x"])
    assert table.rows_by_shard() == before


class Markup(HTMLParser):
    """Collects the elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_report_has_no_element_of_the_corpus(hostile: Hostile) -> None:
    (file,) = Path(hostile.store.dataset_uri).glob("reports/*.html")
    page = Markup()
    html = file.read_text(encoding="utf-8")
    page.feed(html)
    assert "hacked" in html, "the text is not in the data"
    assert not [tag for tag, attributes in page.elements if tag in ("img", "iframe", "i", "b")]
    handlers = [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert handlers == []
    assert sum(tag == "script" for tag, _ in page.elements) == 3, "the data and two scripts"


def test_the_card_and_the_metadata_show_the_corpus_as_text(hostile: Hostile) -> None:
    (card,) = Path(hostile.store.dataset_uri).glob("exports/*/README.md")
    shown = [card.read_text(encoding="utf-8")]
    for tables in (CORPUS_DOCUMENTS, CHUNK_EMBEDDINGS, VERIFIED_DEPENDENCIES):
        key = dg.AssetKey(path_of(tables.name))
        event = hostile.instance.get_latest_materialization_event(key)
        assert event is not None
        assert event.asset_materialization is not None
        shown += [
            value.value
            for value in event.asset_materialization.metadata.values()
            if isinstance(value, dg.MarkdownMetadataValue) and value.value
        ]
    assert len(shown) > 4
    assert any("hacked" in text for text in shown)
    for text in shown:
        assert not re.search(r"(?<!\\)<(script|img|i|b)\b", text)
        assert not re.search(r"(?<!\\)\]\(javascript:", text)
        assert not re.search(r"(?<!\\)\]\(http://h", text)


def test_a_sample_is_shown_without_its_controls(hostile: Hostile) -> None:
    sample = f"{hostile.shard}-00000"
    shown = show_sample(
        hostile.store, partial(load_tokenizer, hostile.settings.scoring), sample, 50
    )
    texts = [t for d in shown.dependencies for t in (d.before, d.token, d.after, d.context)]
    assert texts
    assert not [t for t in texts if "\x1b" in t or "\0" in t or "\u202e" in t]
