"""Where known benchmarks keep their texts: `uri: ruler:<folder>` of an evaluation set.

No benchmark's texts come with this package. Their code is under Apache-2.0 (RULER) or MIT (HELMET,
LongBench), but the texts are those of other data sets and of essays, under licences of their own or
without any. So each is read from the folder in which the benchmark itself put it.

The names of files and fields are those of the benchmarks' own readers:

- RULER, NVIDIA/RULER at c3f5e3b: `scripts/data/prepare.py` writes `<task>/<subset>.jsonl`, whose
  `input` is the whole prompt.
- HELMET, princeton-nlp/HELMET at 4526dfb: `scripts/download_data.sh` unpacks `data/`, which
  `data.py` reads. Questions of KILT and ALCE, queries of MS MARCO, contexts of RULER. Left out are
  the passages of Wikipedia that accompany the questions, and random identifiers (`json_kv`). Tasks
  that HELMET loads from the hub (e.g. NarrativeQA, InfiniteBench) are in no file of it.
- LongBench, THUDM/LongBench at 2e00731: `data.zip`, one JSON Lines file per task with `input` and
  `context`. LongBench v2: `data.json`, with `question` and `context`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """The files of a benchmark."""

    files: tuple[tuple[str, tuple[str, ...]], ...]
    """Pattern below the folder, and the fields that hold texts."""
    how: str
    """How to get them, as the end of a sentence."""


LAYOUTS: Mapping[str, Layout] = {
    "ruler": Layout(
        (("**/*.jsonl", ("input",)),),
        "generate them with scripts/data/prepare.py of github.com/NVIDIA/RULER, and name its "
        "--save_dir",
    ),
    "helmet": Layout(
        (
            ("kilt/*.jsonl", ("question",)),
            ("alce/*.json", ("question",)),
            ("msmarco/*.jsonl", ("query",)),
            ("ruler/**/*.jsonl", ("context",)),
        ),
        "run scripts/download_data.sh of github.com/princeton-nlp/HELMET, and name its folder data",
    ),
    "longbench": Layout(
        (("*.jsonl", ("input", "context")),),
        "unpack data.zip of the data set THUDM/LongBench on the Hugging Face Hub, and name its "
        "folder",
    ),
    "longbench-v2": Layout(
        (("data.json", ("question", "context")),),
        "download data.json of the data set THUDM/LongBench-v2 on the Hugging Face Hub, and name "
        "its folder",
    ),
}
"""By the name that stands before the colon of a uri."""


def layout_of(uri: str) -> tuple[Layout, str] | None:
    """The layout that a uri names, and its folder; None if it names none."""
    name, colon, folder = uri.partition(":")
    return (LAYOUTS[name], folder) if colon and name in LAYOUTS else None
