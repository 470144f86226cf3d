"""Processes that cut documents: what they return, how long they live, and what their end means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.stages.embeddings import cutting
from entropylong_assets.stages.embeddings.cutting import Cutter, Workers, cut_ahead, join_cuts
from entropylong_assets.stages.embeddings.word_ids import TokenCounter, WordByWord
from entropylong_assets_tests.stages.embeddings.test_word_ids import make

PROCESSES = Workers(2, are_processes=True)


def make_cutter(kind: type[TokenCounter] = WordByWord) -> Cutter:
    counter = kind(make(special_as_text=False), special=True, prompt="b: ")
    return Cutter(16, 4, counter.count, counter)


def documents(count: int) -> pl.DataFrame:
    texts = [f"ab cd. é [MASK]{i}. " * (i + 1) for i in range(count)]
    return pl.DataFrame({"doc_id": [f"d{i}" for i in range(count)], "source": "s", "text": texts})


def process_ids() -> list[int]:
    """Of the processes that wait for documents."""
    cutter = make_cutter()
    list(cut_ahead(cutter, "s", documents(9).iter_slices(1), PROCESSES))
    return list(cutting._processes(cutter, PROCESSES.number)._processes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [WordByWord, TokenCounter])
def test_processes_cut_as_this_one_does_and_stay_for_the_next_shard(
    kind: type[TokenCounter],
) -> None:
    """A tokenizer forgets on its way to another process whether special tokens are text."""
    cutter = make_cutter(kind)
    expected = [cutter.cut("one", part) for part in documents(7).iter_slices(2)]
    made = list(cut_ahead(cutter, "one", documents(7).iter_slices(2), PROCESSES))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.chunks.equals(theirs.chunks)
        assert ours.ids is not None
        assert ours.ids.tolist() == theirs.ids.tolist()  # type: ignore[union-attr]
        assert list(map(len, ours.token_ids() or ())) == ours.chunks["n_embedder_tokens"].to_list()
    assert sum(len(cut.chunks) for cut in made) > 20
    pool = cutting._processes(cutter, 2)
    (other,) = cut_ahead(cutter, "two", [documents(2)], PROCESSES)
    assert set(other.chunks["shard"]) == {"two"}
    assert cutting._processes(cutter, 2) is pool


def test_a_process_that_was_killed_is_named_and_replaced() -> None:
    """The system kills it if memory runs out. A pool without it would fail for all later shards."""
    cutter = make_cutter()
    parts = cut_ahead(cutter, "s", documents(40).iter_slices(1), PROCESSES)
    next(parts)
    for process in list(cutting._processes(cutter, 2)._processes):  # type: ignore[attr-defined]
        os.kill(process, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a process that cuts documents has ended"):
        list(parts)
    assert len(list(cut_ahead(cutter, "s", [documents(3)], PROCESSES))) == 1


def test_a_step_in_a_process_of_its_own_ends() -> None:
    """`multiprocessing` joins the processes of a process before it lets executors shut down."""
    step = get_context("spawn").Process(target=process_ids)
    step.start()
    step.join(60)
    assert step.exitcode == 0


def test_processes_end_with_a_step_that_is_killed() -> None:
    """They wait for documents, and would wait forever."""
    code = "from {m} import process_ids\nif __name__ == '__main__':\n"
    code += "    import time; print(*process_ids(), flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code.format(m=__name__)], stdout=subprocess.PIPE, text=True
    ) as step:
        assert step.stdout is not None
        processes = [int(number) for number in step.stdout.readline().split()]
        step.kill()
    assert len(processes) == 2
    deadline = time.monotonic() + 30
    while alive := [p for p in processes if Path(f"/proc/{p}").exists() and not _is_zombie(p)]:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.05)


def _is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_joined_cuts_hold_the_same_chunks_in_order() -> None:
    """Batches of the device are larger than cuts; a document without chunks loses no other."""
    cutter = make_cutter()
    cuts = [cutter.cut("s", part) for part in documents(9).iter_slices(2)]
    cuts.insert(1, cutter.cut("s", documents(0)))
    tokens = [cut.chunks["n_embedder_tokens"].sum() for cut in cuts]
    joined = list(join_cuts(cuts, tokens[0] + tokens[2]))
    assert pl.concat([cut.chunks for cut in joined]).equals(pl.concat([c.chunks for c in cuts]))
    assert [cut.documents for cut in joined] == [4, 2, 2, 1]
    for cut in joined:
        expected = cutter.ids_of.ids(cut.chunks["text"].to_list())  # type: ignore[union-attr]
        assert [ids.tolist() for ids in cut.token_ids() or ()] == [list(ids) for ids in expected]
