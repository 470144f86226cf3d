"""The stage that writes the HTML report of the exported shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.audits.tables import (
    CROSS_MODEL_AUDIT,
    LONG_RANGE_AUDIT,
    NULL_CALIBRATION,
)
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL
from entropylong_assets.report.tables import REPORT, ReportSummary
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Check, Link, Partition, Result, Stage, Step
from entropylong_assets.stages.training_data.stage import EXPORT, TRAINING_DATASET_STAGE
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.storage.duck import View
from entropylong_assets.storage.manifest import Manifest
from entropylong_assets.storage.tables import TableStore

AUDITS = (NULL_CALIBRATION, CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT)


def _exported_shards(export: Manifest) -> list[str]:
    return sorted(export.determinants["inputs"][LONG_CONTEXT_SAMPLES.name])


def _identify(partition: Partition) -> Mapping[str, Any]:
    """Versions of the audits that the report shows.

    Users start these, before or after the report, so they are no inputs of its stage.
    """
    store = partition.store
    shards = set(_exported_shards(store.require(TRAINING_DATASET)))
    trial = store.manifest(TRAINING_TRIAL)
    return ({"trial": trial.data_version} if trial else {}) | {
        "audits": {
            audit.name: {
                shard: store.require(audit, shard).data_version
                for shard in store.shards(audit)
                if shard in shards
            }
            for audit in AUDITS
        }
    }


def _determined_by(_: Settings) -> tuple[str, ...]:
    return ("audit.wished_false_acceptance",)


def _compute(step: Step) -> Result:
    from entropylong_assets.report.page import render
    from entropylong_assets.report.run import open_dataset
    from entropylong_assets.report.serving import url_of
    from entropylong_assets.stages.entropy.model import load_tokenizer

    store = step.store
    export = store.require(TRAINING_DATASET)
    shards = _exported_shards(export)
    step.progress.total = len(shards)
    html = render([open_dataset(step.settings, store, shards)], load_tokenizer).encode()
    step.progress(len(shards))
    path = f"reports/{store.summary(TRAINING_DATASET).version}.html"
    target = f"{store.home(REPORT)}/{path}"
    store.put(target, html)
    page = {"path": path, "bytes": len(html), "sha256": hashlib.sha256(html).hexdigest()}
    step.writer.append("pages", [page])
    return Result(
        ReportSummary(path=path, bytes=len(html), shards=len(shards)),
        {
            "report": target if store.is_local else str(store.fs.unstrip_protocol(target)),
            "report_url": Link(url_of(store.dataset, path)),
            "open_with": "entropylong serve, then the link; it reads the settings of this project",
        },
    )


def _stored_pages(store: TableStore, shard: str) -> pl.DataFrame:
    """The stored pages: path, bytes, sha256. A missing page has no row."""
    rows = []
    for path in store.read(REPORT, shard, "pages", ["path"])["path"]:
        try:
            content = store.fs.cat_file(f"{store.home(REPORT)}/{path}")
        except FileNotFoundError:
            continue
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"path": path, "bytes": len(content), "sha256": digest})
    schema = {"path": pl.String, "bytes": pl.Int64, "sha256": pl.String}
    return pl.DataFrame(rows, schema=schema)


def _views(partition: Partition) -> Mapping[str, View]:
    return {
        "pages": (REPORT, [partition.shard], "pages"),
        "stored": lambda: _stored_pages(partition.store, partition.shard),
    }


REPORT_STAGE = Stage(
    tables=REPORT,
    description="""The report on the exported shards: one HTML file that needs no network.

It shows examples, counts, distributions, audits, and a few roots and samples in full. It is stored
under `reports` in the dataset's folder, named by the version of the export. To open it, run
`entropylong serve` and follow `report_url` in the metadata. Audits are started by hand: materialize
the report again after them.""",
    compute=_compute,
    inputs=(TRAINING_DATASET_STAGE,),
    partitioned=False,
    determined_by=_determined_by,
    identify=_identify,
    code_version=3,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check(
            "page_as_written",
            "The stored page has the bytes that were written.",
            blocking=False,
        ),
    ),
    views=_views,
    job=EXPORT,
    automation="per_batch",
    unit="shards",
    kinds=frozenset({"html"}),
)
