"""One step of training of the demo's model on an exported sample of 131,072 tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from entropylong_assets.project import make_project
from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets_tests.stages.samples.worlds import make_world
from entropylong_assets_tests.stages.training_data.formats import collate_like_prolong, read_mds
from entropylong_assets_tests.stages.training_data.stores import CODE, export_settings, fill_store

SHARD = "books-00000"
SLICE = 192
"""Tokens that fit the memory of a small machine with gradients."""


@pytest.mark.model
def test_a_step_on_an_exported_sample_lowers_its_loss(tmp_path):
    import torch

    from entropylong_assets.stages.entropy.model import load_scoring_model

    settings = export_settings(
        tmp_path, {"formats": ["mds"], "validation_fraction": 0.0}, tokens=131_072
    )
    world = make_world(1, n_roots=6, n_chunks=40, root_tokens=(40, 60), first_token=1000)
    export = export_training_data(
        fill_store(settings, {SHARD: world}), [SHARD], settings, code_version=CODE
    )
    (sample,) = read_mds(Path(export.uri) / "mds/train/books")
    batch = collate_like_prolong(sample, apply_masks=True)
    assert len(sample["input_ids"]) == 131_072
    assert len(batch["input_ids"]) == sample["indices"][0][1]
    anchors = np.array(sample["provenance"]["dependencies"]["anchor_position"])
    assert (anchors < SLICE).any()
    input_ids = torch.from_numpy(batch["input_ids"][:SLICE])[None]
    labels = torch.from_numpy(batch["labels"][:SLICE])[None]
    assert (labels != -100).sum() > 180

    scoring = make_project(profile="quickstart").dataset.scoring.model_copy(
        update={"device": "cpu", "dtype": "float32"}
    )
    # A copy: other tests share the loaded model.
    model = copy.deepcopy(load_scoring_model(scoring).hf_model).train()
    assert int(batch["input_ids"].max()) < model.config.vocab_size
    optimizer = torch.optim.SGD(model.requires_grad_(True).parameters(), lr=1e-3)
    before = model(input_ids=input_ids, labels=labels, use_cache=False).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = model(input_ids=input_ids, labels=labels, use_cache=False).loss
    assert torch.isfinite(before)
    assert after < before
