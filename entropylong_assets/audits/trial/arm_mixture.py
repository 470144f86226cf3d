"""The samples of an arm with a mixture: constructed ones, natural windows and short documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.trial.folder import TrialError
from entropylong_assets.audits.trial.settings import Arm
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.mixed_samples import (
    Plain,
    natural_samples,
    short_samples,
)
from entropylong_assets.stages.training_data.mixture import Entry, choose, count_samples

Part = tuple[pl.DataFrame, list[dict[str, Any]]]
"""Samples (sample_id, input_ids, n_padding), and rows of their segments."""


def cut(window: Plain, n_bos: int, size: int) -> Iterator[Plain]:
    """Cut a natural window into samples of `size` tokens, each with the window's BOS.

    The rest of the window is left out.
    """
    bos, content = window.token_ids[:n_bos], window.token_ids[n_bos:]
    (origin,) = (row for row in window.segments if row["role"] == "natural")
    step = size - n_bos
    for number in range(len(content) // step):
        name = f"{window.sample_id}.{number}"
        segment = origin | {"sample_id": name, "start": n_bos, "end": size}
        yield Plain(name, [*bos, *content[number * step : (number + 1) * step]], [segment])


def _natural(partition: Partition, shards: Sequence[str], settings: Settings) -> Iterator[Plain]:
    store, bos = partition.store, load_tokenizer(settings.scoring).bos_ids
    made = set(store.shards(NATURAL_DOCUMENTS))
    for shard in shards:
        for window in natural_samples(store, shard, bos) if shard in made else ():
            if len(window.token_ids) < settings.samples.tokens:
                raise TrialError(
                    f"natural windows have {len(window.token_ids):,} tokens, fewer than "
                    f"trial.sample_tokens ({settings.samples.tokens:,}); set that to at most "
                    "samples.tokens"
                )
            yield from cut(window, len(bos), settings.samples.tokens)


def _short(partition: Partition, shards: Sequence[str], settings: Settings) -> Iterator[Plain]:
    tokenizer = load_tokenizer(settings.scoring)
    for shard in shards:
        yield from short_samples(partition.store, shard, settings, tokenizer, float("inf"))


_REMEDIES = {
    "constructed": "use another recipe or rule",
    "natural": f"set natural.keep above 0 and materialize {NATURAL_DOCUMENTS.name}",
    "short": "use a corpus with more short documents",
}


def mix(
    arm: Arm,
    partition: Partition,
    shards: Sequence[str],
    constructed: Part,
    max_samples: int | None,
) -> Part:
    """Mix an arm's constructed samples with those of the other parts, by `arm.mixture`.

    partition: settings under this arm, and tables. Samples are chosen and ordered by hash with the
    seed. Raises TrialError if a part that has a share has no sample.
    """
    assert arm.mixture is not None
    settings, seed = partition.settings, partition.settings.seed
    sources = {
        "natural": _natural(partition, shards, settings),
        "short": _short(partition, shards, settings),
    }
    plain = {
        (part, sample.sample_id): sample
        for part, samples in sources.items()
        if arm.mixture.get(part)
        for sample in samples
    }
    entries = {
        part: [Entry(part, "", name) for kind, name in plain if kind == part] for part in sources
    }
    entries["constructed"] = [Entry("constructed", "", n) for n in constructed[0]["sample_id"]]
    for part, share in arm.mixture.items():
        if share and not entries[part]:
            raise TrialError(
                f"no {part} sample, of which its mixture wants {share:g}; " + _REMEDIES[part]
            )
    available = {part: len(own) for part, own in entries.items()}
    counts = count_samples(arm.mixture, available, total=max_samples)
    chosen = [e for part in counts for e in choose(entries[part], counts[part], seed)]
    chosen.sort(key=lambda e: hash_key(seed, "arm", e.part, e.sample_id))
    order = pl.DataFrame({"sample_id": [e.sample_id for e in chosen]})
    others = [plain[e.part, e.sample_id] for e in chosen if e.part != "constructed"]
    rows = pl.DataFrame(
        {
            "sample_id": [sample.sample_id for sample in others],
            "input_ids": [sample.token_ids for sample in others],
            "n_padding": [0] * len(others),
        },
        schema=constructed[0].schema,
    )
    samples = pl.concat([constructed[0], rows])
    segments = [*constructed[1], *(row for sample in others for row in sample.segments)]
    return order.join(samples, "sample_id", maintain_order="left"), segments
