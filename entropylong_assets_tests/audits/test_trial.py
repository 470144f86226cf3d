"""The training trial on a planted corpus: what a root needs stands in its true context alone.

Failures looked for: labels that are not shifted, or twice; positions or order lost; a mask between
a root and its context; a resumed run that ends elsewhere; arms that see other batches; padding that
is learnt. `test_trial_shows_a_broken_trainer` proves that the first test would notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from entropylong_assets.audits.trial import network, training
from entropylong_assets.audits.trial.folder import (
    Items,
    Rows,
    TrialError,
    TrialFacts,
    TrialFolder,
    pad_rows,
)
from entropylong_assets.audits.trial.network import IGNORED, Network, shift
from entropylong_assets.audits.trial.plan import make_plan, read_results
from entropylong_assets.audits.trial.runs import Runner
from entropylong_assets.audits.trial.training import Schedule, TrainingSettings, learning_rate_at
from entropylong_assets.stages.samples.groups import Context, Dependency, Group, unverified
from entropylong_assets.stages.samples.packing import Framing, lay_out
from entropylong_assets.stages.samples.settings import SampleSettings

PAD, SEPARATOR = 0, 1
KEYS, VALUES = np.arange(2, 10), np.arange(10, 18)
STATED, TOLD = 6, 4
"""Facts that a context states, and those of them that its root repeats, in the same order."""
TOKENS, SAMPLES, BATCH, STEPS = 24, 1600, 16, 200
FRAMING = Framing(bos_ids=(), separator_ids=(SEPARATOR,), pad_id=PAD)
PACKING = SampleSettings(tokens=TOKENS, fill="verified_only")


def facts(draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Some keys, each with a value, as (STATED, 2)."""
    return np.stack([draw.permutation(KEYS)[:STATED], draw.choice(VALUES, STATED)], axis=1)


def planted_root(draw: np.random.Generator, number: int, is_genuine: bool) -> Group:
    """A root that repeats facts; the context states them, or others."""
    own = facts(draw)
    stated = own if is_genuine else facts(draw)
    root_id = f"root-{number}"
    ids = np.array([*stated.ravel(), SEPARATOR], np.uint32)
    context = unverified(
        root_id=root_id, chunk_id=f"c-{number}", doc_id=f"d-{number}", source="s", token_ids=ids
    )
    if is_genuine:
        gain = Dependency(
            anchor=1, rank=1, gain=0.9, calibrated_gain=0.9, entropy=2.0, entropy_context=0.2
        )
        context = Context(**{**vars(context), "dependencies": (gain,), "unverified": False})
    told = own[:TOLD].ravel().astype(np.uint32)
    return Group(root_id=root_id, token_ids=told, chosen=(context,), negatives=())


def planted_rows(is_genuine: bool) -> Rows:
    draw = np.random.default_rng(5)
    rows = []
    for number in range(SAMPLES):
        segments = lay_out([planted_root(draw, number, is_genuine)], FRAMING, PACKING, 0)
        assert [s.role for s in segments][1:] == ["root", "padding"]
        rows.append(np.concatenate([s.token_ids for s in segments if s.role != "padding"]))
    return pad_rows(rows, TOKENS, PAD)


def held_out_items(count: int = 128) -> Items:
    """Held-out roots, cut after the value of their last key."""
    draw, rows = np.random.default_rng(99), []
    for _ in range(count):
        own = facts(draw)
        told = own[:TOLD].ravel()
        rows.append(np.array([*own.ravel(), SEPARATOR, *told], np.uint32))
    padded = pad_rows(rows, TOKENS, PAD)
    return Items(padded.token_ids_NT, padded.lengths_N - 1, padded.lengths_N)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folder of two arms, and a tiny model with random weights."""
    base = tmp_path_factory.mktemp("trial")
    folder = TrialFolder(base / "data")
    rows = {arm: planted_rows(arm == "genuine") for arm in ("genuine", "random")}
    for arm, own in rows.items():
        folder.write_samples(arm, own)
    folder.write_items("copy-24", held_out_items())
    some = Rows(rows["genuine"].token_ids_NT[:8], rows["genuine"].lengths_N[:8])
    folder.write_documents("natural", some)
    folder.write_documents("short", some)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=18,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=TOKENS,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )
    )
    model.save_pretrained(base / "model")
    folder.write_facts(
        TrialFacts(
            model=str(base / "model"), vocab_size=18, pad_id=PAD, sample_tokens=TOKENS, arms={}
        )
    )
    return base


def run_trial(
    planted: Path, out: Path, arms: list[str], steps: int = STEPS, **settings: Any
) -> list[dict[str, Any]]:
    tokens = steps * BATCH * TOKENS
    plan = make_plan(
        {
            "data": str(planted / "data"),
            "short_window": 4,
            "settings": {
                "learning_rate": 5e-3,
                "batch_tokens": BATCH * TOKENS,
                "micro_batch_tokens": BATCH * TOKENS,
                "weight_decay": 0.0,
                "warmup": 0.1,
                **settings,
            },
            "runs": [{"arm": arm, "tokens": tokens} for arm in arms],
        }
    )
    Runner(plan, out, lambda _: None, "cpu").run()
    return read_results(out / "results.jsonl")


def share_right(result: dict[str, Any]) -> float:
    return float(np.mean(result["scores"]["copy-24"]["exact"]))


def test_trial_learns_to_copy_from_true_contexts_alone(planted: Path, tmp_path: Path) -> None:
    genuine, random = run_trial(planted, tmp_path, ["genuine", "random"])
    # Who knows only which values the context states is right in a sixth of the items.
    assert share_right(genuine) > 0.9
    assert share_right(random) < 0.3
    means = [np.mean(r["scores"]["copy-24"]["log_likelihood"]) for r in (genuine, random)]
    assert means[0] > -0.3 > -1.5 > means[1]


def unshifted(ids_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    return torch.where(shift(ids_BT, lengths_B) == IGNORED, IGNORED, ids_BT)


def shifted_twice(ids_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    return shift(ids_BT, lengths_B).roll(-1, dims=1)


def hidden_without_positions(self: Network, ids_BT: torch.Tensor) -> Any:
    zeros_BT = torch.zeros_like(ids_BT)
    mask = torch.ones(ids_BT.shape[1], ids_BT.shape[1], dtype=torch.bool).tril()[None, None]
    return self.decoder(
        input_ids=ids_BT, position_ids=zeros_BT, attention_mask=mask, use_cache=False
    ).last_hidden_state


def hidden_within_documents(self: Network, ids_BT: torch.Tensor) -> Any:
    """Every document sees itself alone, as trainers that mask between documents have it."""
    is_end = (ids_BT == SEPARATOR).long()
    document_BT = is_end.cumsum(1) - is_end
    same = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    return self.decoder(
        input_ids=ids_BT,
        attention_mask=same & same.new_ones(same.shape[-2:]).tril(),
        use_cache=False,
    ).last_hidden_state


def order_lost(rows: Rows) -> Rows:
    """Roots before their contexts."""
    ids_NT = rows.token_ids_NT.copy()
    context, root = 2 * STATED + 1, 2 * TOLD + 1
    ids_NT[:, : context + root] = np.roll(ids_NT[:, : context + root], root, axis=1)
    return Rows(ids_NT, rows.lengths_N)


Patch = Callable[[pytest.MonkeyPatch], None]
BREAKS: dict[str, Patch] = {
    "labels are not shifted": lambda m: m.setattr(training, "shift", unshifted),
    "labels are shifted twice": lambda m: m.setattr(training, "shift", shifted_twice),
    "positions are lost": lambda m: m.setattr(Network, "hidden", hidden_without_positions),
    "documents are masked": lambda m: m.setattr(Network, "hidden", hidden_within_documents),
    "roots stand before contexts": lambda m: m.setattr(
        TrialFolder,
        "samples",
        lambda self, arm, old=TrialFolder.samples: order_lost(old(self, arm)),
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_trial_shows_a_broken_trainer(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(network, "_check_logits", lambda *_: None)  # it would refuse to start
    BREAKS[broken](monkeypatch)
    (result,) = run_trial(planted, tmp_path, ["genuine"])
    assert share_right(result) < 0.5, broken
