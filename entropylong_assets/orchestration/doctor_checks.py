"""Checks of the machine, the models and the data, one finding each: see `doctor.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from entropylong_assets.orchestration.errors import few, line
from entropylong_assets.orchestration.naming import prefixed
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings, printable
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.listing import list_files
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow
from entropylong_assets.stages.corpus.shards import NO_SOURCE, load_plan, replan
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.status import status_of
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.sides import Side

MIN_FREE_BYTES = 2 << 30
"""With less free, a run is likely to run out of disk space."""

ROWS_READ = 20
"""Rows read from the first file of each source."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    subject: str
    verdict: Literal["ok", "warning", "fault"]
    message: str
    """What was found and, unless all is well, what to do."""


def existing_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def _without_new_folders(path: Path) -> Iterator[None]:
    """Remove folders that are made on the way to `path` and are empty in the end."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def disk(data_uri: str) -> Finding:
    store = TableStore(data_uri)
    probe = f"{store.root}/.doctor"
    try:
        with _without_new_folders(Path(store.root)) if store.is_local else nullcontext():
            store.put(probe, b"probe")
            store.fs.rm(probe)
    except Exception as error:  # each file system has its own
        return Finding(
            "disk",
            "fault",
            f"{data_uri} can't be written to ({line(error)}); correct data_uri, its "
            "rights or its credentials",
        )
    home = os.environ.get("DAGSTER_HOME") or str(Path.home())
    places = [home, *([store.root] if store.is_local else [])]
    free = {place: shutil.disk_usage(existing_folder(Path(place))).free for place in places}
    place, least = min(free.items(), key=lambda item: item[1])
    message = f"{least / 2**30:,.1f} GiB free at {place}"
    if least < MIN_FREE_BYTES:
        return Finding(
            "disk",
            "fault",
            f"{message}; free at least {MIN_FREE_BYTES >> 30} GiB: docs/operating.md, Prune",
        )
    return Finding("disk", "ok", f"{data_uri} can be written to; {message}")


def device(settings: Settings) -> Finding:
    import torch

    from entropylong_assets.stages.entropy.model import resolve_device

    device, dtype = resolve_device(settings.scoring)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        message = f"{torch.cuda.get_device_name()}, {dtype}, {free >> 30} of {total >> 30} GiB free"
        if free < total / 2:
            return Finding(
                "device", "warning", f"{message}; another process uses it: see `nvidia-smi`"
            )
        return Finding("device", "ok", message)
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        return Finding(
            "device",
            "warning",
            "there is an NVIDIA GPU but this torch is built for CPUs; install the build that "
            "torch's site names for your CUDA (docs/deployment.md, Install)",
        )
    return Finding("device", "ok", f"{device}, {dtype}, {torch.get_num_threads()} threads")


def scoring_model(settings: Settings) -> Finding:
    """Whether the model can be loaded and scored; it is loaded if there is memory for it."""
    from entropylong_assets.stages.entropy import weights
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import (
        load_scoring_model,
        load_tokenizer,
        resolve_device,
    )
    from entropylong_assets.stages.entropy.network import longest_sequence
    from entropylong_assets.stages.model_files import ModelError

    scoring = settings.scoring
    device, dtype = resolve_device(scoring)
    tokenizer = load_tokenizer(scoring)
    outline = weights.outline(scoring)
    positions = longest_sequence(outline, scoring.max_forward_tokens)
    if positions <= settings.roots.max_tokens:
        raise ModelError(
            f"model {scoring.model}: it takes {positions:,} tokens at once, which leaves no room "
            f"for a context before roots of {settings.roots.max_tokens:,}; lower "
            "roots.max_tokens"
        )
    assert tokenizer.count(["a"])
    message = f"{scoring.model}, {positions:,} positions"
    needed, free = weights.weights_bytes(outline, dtype), _free_memory(device)
    if needed > free:
        return Finding(
            "scoring model",
            "warning",
            f"{message}; not tested: its weights take {needed / 2**30:,.1f} GiB, and {device} has "
            f"{free / 2**30:,.1f} GiB free; run the doctor where the model will run",
        )
    scorer = load_scorer(load_scoring_model(scoring), scoring.pack_tokens)
    scorer.test_up_to(settings.roots.max_tokens)
    return Finding("scoring model", "ok", f"{message}, scoring mode '{scorer.mode}'")


def _free_memory(device: str) -> int:
    """Free memory (bytes) of a device or, on a CPU, of the machine."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def embedding_model(corpus: Settings) -> Finding:
    from entropylong_assets.stages.embeddings.embedder import embed_full_window, load_embedder

    embedder = load_embedder(corpus.embedding)
    embed_full_window(embedder)
    message = (
        f"{corpus.embedding.model}, {embedder.dimension} dimensions, windows of "
        f"{embedder.window_tokens} tokens, {_shown('query', embedder.query)}, "
        f"{_shown('document', embedder.document)}"
    )
    if embedder.notes:
        return Finding("embedding model", "warning", "; ".join([message, *embedder.notes]))
    return Finding("embedding model", "ok", message)


def _shown(name: str, side: Side) -> str:
    """The prompt of queries or documents, and the task if it has another name."""
    prompt = f"{name} prompt {printable(side.prompt)!r}" if side.prompt else f"no {name} prompt"
    return prompt if side.task in (name, None) else f"{prompt} (task {side.task})"


def sources(corpus: Settings) -> Finding:
    if not corpus.sources:
        return Finding("sources", "fault", NO_SOURCE)
    known = load_plan(open_store(corpus))
    planned = {file for shard in known.known for file in shard.files}
    files, new = 0, set[str]()
    for source in corpus.sources:
        if source.name in known.retired_sources:
            continue
        listed = list_files(source)
        if not listed:  # a run would continue with the known shards, which is hardly intended
            raise CorpusError(
                f"source '{source.name}': no file at {source.uri}; put files there or correct "
                "the source's uri"
            )
        files += len(listed)
        new |= {f.uri for f in listed if known.empty.get(f.uri) != f.version} - planned
        for row in islice(read_rows(listed[0].uri, listed[0].kind, source), ROWS_READ):
            if isinstance(row, BadRow):
                where = f"{row.file}, row {row.row}: {row.detail}; {REMEDIES[row.reason]}"
                skips = corpus.on_bad_row == "skip"
                return Finding("sources", "warning" if skips else "fault", where)
    # Compares known files only, since the rows of new ones would have to be counted.
    plan = replan(corpus, known, max_new_files=0)
    message = f"{len(corpus.sources)} sources, {files:,} files, {len(planned):,} planned"
    for what, names, remedy in (
        ("changed", plan.changed, "switch on the sensor `new_files`, or run `ingest` for them"),
        (
            "missing",
            plan.missing,
            "put them back, or take their shards out with `entropylong retire`",
        ),
        (
            "in no shard yet",
            sorted(new),
            f"register them with `entropylong scan` or the job `{prefixed(corpus, 'scan')}`",
        ),
    ):
        if names:
            return Finding("sources", "warning", f"{message}; {what}: {few(names)}; {remedy}")
    return Finding("sources", "ok", message)


def tables(settings: Settings, stages: Sequence[Stage]) -> Finding:
    """Whether every visible partition of a corpus or dataset can be read."""
    store = open_store(settings)
    partitions, missing, damaged = 0, [], []
    for stage in stages:
        for shard in store.shards(stage.tables):
            partitions += 1
            try:
                manifest = store.require(stage.tables, shard)
            except TableError as error:
                damaged.append(str(error))
                continue
            missing += [
                f"{stage.name}, {shard}: {table.file} is missing"
                for table in manifest.tables.values()
                if not store.fs.exists(f"{store.folder(stage.tables, shard)}/{table.file}")
            ][:1]
    if damaged:
        return Finding("tables", "fault", _first(damaged))
    if missing:
        return Finding("tables", "fault", f"{_first(missing)}; materialize it again")
    return Finding("tables", "ok", f"{partitions:,} partitions")


def staleness(settings: Settings, stages: Sequence[Stage]) -> Finding:
    """Which stages have partitions that were made under other settings, code or inputs."""
    partition = Partition(settings, open_store(settings))
    stale = []
    for status in status_of(partition, stages, ()):
        for partition_state, shards in status.reasons().items():
            if partition_state.state == "stale":
                stale.append(f"{status.stage.name} ({len(shards):,}): {partition_state.reason}")
    if stale:
        message = f"{few(stale)}; `entropylong run` makes them again, or restore the setting"
        return Finding("up to date", "warning", message)
    return Finding("up to date", "ok", "nothing is stale")


def _first(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
    return f"{faults[0]}{more}"


def vector_table(corpus: Settings) -> Finding:
    """Whether the LanceDB table can be opened with this embedder, and its indexed version."""
    store = open_store(corpus)
    if not store.shards(CHUNK_EMBEDDINGS):
        return Finding("LanceDB table", "ok", "not made yet")
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import load_table

    # Raises TableError if it is missing or of another embedder.
    table = load_table(store, load_embedder(corpus.embedding))
    version = table.version
    if store.manifest(EMBEDDING_INDEX) is None:
        return Finding("LanceDB table", "ok", f"version {version}, no index yet")
    index = store.summary(EMBEDDING_INDEX)
    table.checkout(index.tag)
    return Finding(
        "LanceDB table", "ok", f"version {version}; {index.tag} holds {index.n_shards:,} shards"
    )


Check = Callable[[Settings], Finding]

OF_A_CORPUS: Mapping[str, Check] = {
    "embedding model": embedding_model,
    "sources": sources,
    "LanceDB table": vector_table,
}
OF_A_DATASET: Mapping[str, Check] = {"device": device, "scoring model": scoring_model}
