"""Cutting the documents of a shard, in threads or processes beside the one that embeds them."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from multiprocessing import get_context, parent_process
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from entropylong_assets.stages.embeddings.chunking import (
    Chunk,
    CountTokens,
    chunk_document,
    chunk_ids,
)
from entropylong_assets.stages.embeddings.token_ids import IdMemory, TokenIds
from entropylong_assets.stages.embeddings.word_ids import TokenCounter

_SCHEMA = {
    "chunk_id": pl.String,
    "doc_id": pl.String,
    "shard": pl.String,
    "source": pl.String,
    "chunk_number": pl.Int64,
    "start": pl.Int64,
    "end": pl.Int64,
    "n_embedder_tokens": pl.Int64,
    "text": pl.String,
}


class Workers(NamedTuple):
    """What cuts documents beside the thread that embeds."""

    number: int
    """0: that thread cuts them itself."""
    are_processes: bool = False


class Cut(NamedTuple):
    """The chunks of a batch of documents."""

    documents: int
    chunks: pl.DataFrame
    ids: np.ndarray | None
    """Token ids of all chunks, one after the other; None if the embedder has no use for them."""

    def token_ids(self) -> list[TokenIds] | None:
        """Return the ids of each chunk."""
        if self.ids is None:
            return None
        borders = accumulate(self.chunks["n_embedder_tokens"].to_list(), initial=0)
        return [self.ids[start:end] for start, end in pairwise(borders)]


def join_cuts(cuts: Iterable[Cut], tokens: int) -> Iterator[Cut]:
    """Yield several cuts as one, in order, once they have so many tokens; the last has fewer."""
    waiting: list[Cut] = []
    waiting_tokens = 0
    for cut in cuts:
        waiting.append(cut)
        waiting_tokens += int(cut.chunks["n_embedder_tokens"].sum())
        if waiting_tokens >= tokens:
            yield _joined(waiting)
            waiting, waiting_tokens = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(cuts: Sequence[Cut]) -> Cut:
    ids = [cut.ids for cut in cuts if cut.ids is not None]
    return Cut(
        sum(cut.documents for cut in cuts),
        pl.concat([cut.chunks for cut in cuts]),
        np.concatenate(ids) if ids else None,
    )


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into chunks; can be sent to another process if `count_tokens` can."""

    window_tokens: int
    min_chars: int
    """A shorter chunk is joined to a neighbour if both fit the window."""
    count_tokens: CountTokens
    ids_of: TokenCounter | None
    """Gives the token ids of chunks; None if they are of no use."""

    def cut(self, shard: str, documents: pl.DataFrame) -> Cut:
        """Cut documents of a shard: doc_id, source, text."""
        rows: list[tuple[Any, ...]] = []
        token_ids: list[TokenIds] = []
        for doc_id, source, text in documents.select("doc_id", "source", "text").iter_rows():
            memory = IdMemory(self.ids_of) if self.ids_of else None
            count_tokens = memory.count_tokens if memory else self.count_tokens
            chunks = chunk_document(text, self.window_tokens, self.min_chars, count_tokens)
            rows += _rows_of(doc_id, shard, source, chunks)
            if memory is not None:
                token_ids += memory.of([chunk.text for chunk in chunks])
        frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
        ids = np.concatenate(token_ids) if token_ids else None
        return Cut(len(documents), frame, ids)


def _rows_of(
    doc_id: str, shard: str, source: str, chunks: Sequence[Chunk]
) -> Iterator[tuple[Any, ...]]:
    ids = chunk_ids(doc_id, chunks)
    for number, (chunk_id, chunk) in enumerate(zip(ids, chunks, strict=True)):
        place = (number, chunk.start, chunk.end, chunk.n_tokens, chunk.text)
        yield (chunk_id, doc_id, shard, source, *place)


def cut_ahead(
    cutter: Cutter, shard: str, document_batches: Iterable[pl.DataFrame], workers: Workers
) -> Iterator[Cut]:
    """Yield the chunks of each batch of documents, in order, while the next ones are cut."""
    if workers.number == 0:
        yield from (cutter.cut(shard, documents) for documents in document_batches)
        return
    ahead: deque[Future[Cut]] = deque()
    with ExitStack() as stack:
        pool: Executor
        if workers.are_processes:
            pool, cut = _processes(cutter, workers.number), _cut_here
        else:
            pool = stack.enter_context(ThreadPoolExecutor(workers.number, "cut"))
            cut = cutter.cut
        stack.callback(lambda: [future.cancel() for future in ahead])
        try:
            for documents in document_batches:
                ahead.append(pool.submit(cut, shard, documents))
                if len(ahead) > 2 * workers.number:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenExecutor as error:
            _processes.cache_clear()
            raise RuntimeError(
                "a process that cuts documents has ended, perhaps for lack of memory; give the "
                "step more memory or fewer cores, and run it again"
            ) from error


@lru_cache(maxsize=1)
def _processes(cutter: Cutter, number: int) -> Executor:
    """Return the processes of a cutter, which stay for the next shard of this process."""
    pool = ProcessPoolExecutor(
        number,
        mp_context=get_context("spawn"),  # a fork would copy locks that threads hold
        initializer=_begin,
        initargs=(cutter,),
    )
    # At its end, a process that `multiprocessing` started, such as a step, first closes its queues
    # (priority 10), then waits for those that it started itself, and only then ends executors.
    Finalize(None, pool.shutdown, exitpriority=20)
    return pool


_cutter: Cutter


def _begin(cutter: Cutter) -> None:
    """Start a process that cuts; it ends with the process that started it."""
    global _cutter
    _cutter = cutter
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cut_here(shard: str, documents: pl.DataFrame) -> Cut:
    return _cutter.cut(shard, documents)
