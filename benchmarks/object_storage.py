"""Requests and seconds of stages whose data is in object storage 20 ms away.

    python -m benchmarks.object_storage [--documents 40] [--latency 0.02] [--root-by-root]

The store is moto's S3 server. A proxy in front of it delays every request, and counts those of
LanceDB (`lancedb`) and of the tables (`tables`). moto and the proxy share the processor with the
stages, so the seconds are an upper bound; the requests are exact. The models are tiny and random.
Samples are made by the rule in force, with the corpus as fill, and by the recipes `random` and
`quest`, which read passages of the corpus for every root. `--root-by-root`: these recipes search
and read for one root at a time, as they did before; the samples are the same. Needs the extras `s3`
and `test`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from benchmarks.claims import Claims
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.samples.pool import IndexPool
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.storage.faulty_s3 import Bucket, Proxy, environment, server
from entropylong_assets_tests.tiny_world import document, tiny_settings, write_models

MEASURED = ("candidate_contexts", "verified_dependencies")
SAMPLES: dict[str, dict[str, Any]] = {
    "rule in force": {},
    "fill corpus": {"fill": "corpus"},
    "random": {"recipe": "random"},
    "quest": {"recipe": "quest"},
}


class DistantStore(Proxy):
    """Answers every request late, and injects no fault."""

    def __init__(self, upstream: str, latency: float) -> None:
        super().__init__(upstream, 1, {"lancedb": 0.0, "tables": 0.0}, 0.0)
        self._latency = latency

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self._latency)
        return await super()._answer(request)


def settings_for(folder: Path, uri: str, samples: dict[str, Any]) -> Settings:
    models = (str(folder / "models/llama"), str(folder / "models/bert"))
    settings = tiny_settings(
        folder / "corpus", Path("data"), models, data_uri=uri, samples={"tokens": 4096, **samples}
    )
    assert settings.data_uri == uri
    return settings


def partition_of(stage: Stage, settings: Settings) -> Partition:
    chosen = settings.corpus if stage.scope == "corpus" else settings
    return Partition(chosen, open_store(chosen), "tiny-00000" if stage.partitioned else WHOLE)


def measure(claims: Claims, store: DistantStore, name: str, stage: Stage, chosen: Settings) -> None:
    partition = partition_of(stage, chosen)
    store.requests.clear()
    start = time.perf_counter()
    manifest = materialize(stage, partition).manifest
    claims.note(
        name,
        seconds=time.perf_counter() - start,
        rows=manifest.tables[stage.tables.main].rows,
        roots=manifest.summary.get("roots"),
        data_version=manifest.data_version[:8],
        **{f"requests_{client}": store.requests[client] for client in ("lancedb", "tables")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--root-by-root", action="store_true")
    parser.add_argument("--out")
    args = parser.parse_args()
    claims = Claims("object_storage")
    if args.root_by_root:
        IndexPool.announce = lambda *_: None  # type: ignore[method-assign, assignment]
    with (
        tempfile.TemporaryDirectory() as temporary,
        server() as url,
        DistantStore(url, args.latency) as store,
    ):
        folder = Path(temporary)
        (folder / "models").mkdir()
        (folder / "corpus").mkdir()
        write_models(folder / "models")
        lines = [json.dumps({"text": document(i), "id": str(i)}) for i in range(args.documents)]
        (folder / "corpus" / "a.jsonl").write_text("\n".join(lines) + "\n")
        os.environ.update(environment(store.url))
        bucket = Bucket(url, "distant")
        settings = settings_for(folder, f"{bucket.uri}/data", {})
        save_plan(open_store(settings.corpus), plan_shards(settings.corpus))
        for stage in LONG_CONTEXT_SAMPLES_STAGE.upstream():
            partition = partition_of(stage, settings)
            if stage.name in MEASURED:
                measure(claims, store, stage.name, stage, settings)
            else:
                materialize(stage, partition)
            for check in run_checks(stage, partition):
                assert check.passed or not check.check.blocking, check
        for name, samples in SAMPLES.items():
            chosen = settings_for(folder, f"{bucket.uri}/data", samples)
            measure(claims, store, f"samples, {name}", LONG_CONTEXT_SAMPLES_STAGE, chosen)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
