"""Examinations of the machine, the models and the data, one finding each: see `doctor.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from entropylong_assets.orchestration.errors import line
from entropylong_assets.orchestration.partitions import PIPELINE
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.files import list_files
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow
from entropylong_assets.stages.corpus.shards import load_plan, plan_shards
from entropylong_assets.storage.schemas import FORMAT_VERSION
from entropylong_assets.storage.tables import WHOLE, TableError, TableStore

LEAST_FREE_BYTES = 2 << 30
"""Below it a run is likely to end for want of disk."""

ROWS_LOOKED_AT = 20
"""Of the first file of each source."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    verdict: Literal["ok", "warning", "fault"]
    told: str
    """What was found and, unless all is well, what to do."""


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def disk(settings: Settings) -> Finding:
    store = TableStore(settings.data_uri)
    probe = f"{store.root}/.doctor"
    try:
        store.put(probe, b"probe")
        store.fs.rm(probe)
    except Exception as error:  # each file system has its own
        return Finding(
            "disk",
            "fault",
            f"{settings.data_uri} can't be written to ({line(error)}); correct data_uri, its "
            "rights or its credentials",
        )
    home = os.environ.get("DAGSTER_HOME") or str(Path.home())
    places = [home, *([store.root] if store.is_local else [])]
    free = {place: shutil.disk_usage(place).free for place in places}
    place, least = min(free.items(), key=lambda item: item[1])
    told = f"{least / 2**30:,.1f} GiB free at {place}"
    if least < LEAST_FREE_BYTES:
        return Finding(
            "disk",
            "fault",
            f"{told}; free at least {LEAST_FREE_BYTES >> 30} GiB: docs/operating.md, Prune",
        )
    return Finding("disk", "ok", f"{settings.data_uri} can be written to; {told}")


def device(settings: Settings) -> Finding:
    import torch

    from entropylong_assets.stages.entropy.model import resolve_device

    device, dtype = resolve_device(settings.scoring)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info()
        told = f"{torch.cuda.get_device_name()}, {dtype}, {free >> 30} of {total >> 30} GiB free"
        if free < total / 2:
            return Finding(
                "device", "warning", f"{told}; another process holds it: see `nvidia-smi`"
            )
        return Finding("device", "ok", told)
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        return Finding(
            "device",
            "warning",
            "there is an NVIDIA GPU but this torch is built for CPUs; install the build that "
            "torch's site names for your CUDA (README, GPU)",
        )
    return Finding("device", "ok", f"{device}, {dtype}, {torch.get_num_threads()} threads")


def scoring_model(settings: Settings) -> Finding:
    from transformers import AutoConfig

    from entropylong_assets.stages.entropy.model import load_tokenizer, model_folder
    from entropylong_assets.stages.entropy.model_files import ModelError

    scoring = settings.scoring
    tokenizer = load_tokenizer(scoring)
    folder = model_folder(scoring)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {scoring.model}: {folder} holds no weights (*.safetensors); copy or fetch "
            "it whole"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=scoring.trust_remote_code)
    positions = min(config.get_text_config().max_position_embeddings, scoring.max_forward_tokens)
    if positions <= settings.corpus.root_max_tokens:
        raise ModelError(
            f"model {scoring.model}: it takes {positions:,} tokens at once, which leaves no room "
            f"for a context before roots of {settings.corpus.root_max_tokens:,}; lower "
            "corpus.root_max_tokens"
        )
    assert tokenizer.count(["a"])
    return Finding("scoring model", "ok", f"{scoring.model}, {positions:,} positions")


def embedding_model(settings: Settings) -> Finding:
    from entropylong_assets.stages.embeddings.embedder import load_embedder

    embedder = load_embedder(settings.embedding)
    return Finding(
        "embedding model",
        "ok",
        f"{settings.embedding.model}, {embedder.dimension} dimensions, windows of "
        f"{embedder.window_tokens} tokens",
    )


def sources(settings: Settings) -> Finding:
    if not settings.corpus.sources:
        return Finding(
            "sources", "fault", "corpus.sources names none; name one in the settings file"
        )
    files = 0
    for source in settings.corpus.sources:
        found = list_files(source)
        if not found:
            raise CorpusError(
                f"source '{source.name}': no file at {source.uri}; put files there or correct "
                "the source's uri"
            )
        files += len(found)
        for row in islice(read_rows(found[0].uri, found[0].kind, source), ROWS_LOOKED_AT):
            if isinstance(row, BadRow):
                where = f"{row.file}, row {row.row}: {row.detail}; {REMEDIES[row.reason]}"
                skips = settings.corpus.on_bad_row == "skip"
                return Finding("sources", "warning" if skips else "fault", where)
    known = load_plan(TableStore(settings.data_uri)).shards
    planned = {file for shard in known for file in shard.files}
    # Only the files that are known are compared: rows of new ones would have to be counted.
    plan = plan_shards(settings.corpus, known, max_new_files=0)
    told = f"{len(settings.corpus.sources)} sources, {files:,} files, {len(planned):,} planned"
    for what, names, remedy in (
        ("changed", plan.changed, "switch on the sensor `new_files`, or run `ingest` for them"),
        ("gone", plan.gone, "put them back, or leave their shards as they are"),
    ):
        if names:
            return Finding("sources", "warning", f"{told}; {what}: {few(names)}; {remedy}")
    return Finding("sources", "ok", told)


def tables(settings: Settings) -> Finding:
    store = TableStore(settings.data_uri)
    partitions, stale, damaged = 0, [], []
    for asset in PIPELINE:
        for shard in store.shards(asset):
            partitions += 1
            try:
                manifest = store.require(asset, shard)
            except TableError as error:
                damaged.append(str(error))
                continue
            missing = [
                table.file
                for table in manifest.tables.values()
                if not store.fs.exists(f"{store.folder(asset, shard)}/{table.file}")
            ]
            if missing:
                stale.append(f"{asset}, {shard}: {missing[0]} is gone")
    if damaged:
        return Finding("tables", "fault", f"{_first(damaged)}")
    if stale:
        return Finding("tables", "fault", f"{_first(stale)}; materialise it again")
    return Finding("tables", "ok", f"{partitions:,} partitions in format {FORMAT_VERSION}")


def _first(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
    return f"{faults[0]}{more}"


def lancedb(settings: Settings) -> Finding:
    store = TableStore(settings.data_uri)
    if not store.shards("chunk_embeddings"):
        return Finding("LanceDB table", "ok", "not made yet")
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import ChunkTable, open_table

    embedder = load_embedder(settings.embedding)
    open_table(settings.data_uri)  # raises where it is not there; ChunkTable would make it
    table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
    version = table.version
    index = store.manifest("embedding_index")
    if index is None:
        return Finding("LanceDB table", "ok", f"version {version}, no index yet")
    tag = str(index.summary["tag"])
    table.checkout(tag)
    shards = store.read("embedding_index", WHOLE, "shards", ["shard"])["shard"]
    return Finding("LanceDB table", "ok", f"version {version}; {tag} holds {len(shards):,} shards")
