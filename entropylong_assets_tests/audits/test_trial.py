"""The training trial on a planted corpus: what a root needs stands in its true context alone.

Failures looked for: labels that are not shifted, or twice; positions or order lost; a mask between
a root and its context; a resumed run that ends elsewhere; arms that see other batches; padding that
is learnt. `test_trial_shows_a_broken_trainer` proves that the first test would notice.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend
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
from entropylong_assets.audits.trial.training import Schedule, learning_rate_at
from entropylong_assets.audits.trial.training_settings import TrainingSettings
from entropylong_assets.stages.samples.groups import Context, Dependency, Group, unverified
from entropylong_assets.stages.samples.packing import Framing, lay_out
from entropylong_assets.stages.samples.settings import SampleSettings

PAD, SEPARATOR = 0, 1
KEYS, VALUES = np.arange(2, 10), np.arange(10, 18)
STATED, REPEATED = 6, 4
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
    repeated = own[:REPEATED].ravel().astype(np.uint32)
    return Group(root_id=root_id, token_ids=repeated, chosen=(context,), negatives=())


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
        repeated = own[:REPEATED].ravel()
        rows.append(np.array([*own.ravel(), SEPARATOR, *repeated], np.uint32))
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
    context, root = 2 * STATED + 1, 2 * REPEATED + 1
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


class KilledError(Exception):
    """Stands for the signal that ends a process between two steps."""


def test_a_killed_run_ends_as_an_uninterrupted_one(planted: Path, tmp_path: Path) -> None:
    def plan_of(out: str) -> Runner:
        plan = make_plan(
            {
                "data": str(planted / "data"),
                "short_window": 4,
                "settings": {
                    "batch_tokens": BATCH * TOKENS,
                    "log_steps": 5,
                    "checkpoint_seconds": 0.0,
                },
                "runs": [
                    {"arm": "random", "tokens": 0},
                    {"arm": "genuine", "tokens": 30 * BATCH * TOKENS, "seed": 3},
                ],
            }
        )
        return Runner(plan, tmp_path / out, lambda _: None, "cpu")

    def kill(step: int) -> None:
        if step == 17:
            raise KilledError

    plan_of("whole").run()
    interrupted = plan_of("resumed")
    with pytest.raises(KilledError):
        interrupted.run(kill)
    assert len(list((tmp_path / "resumed" / "interrupted").iterdir())) == 1
    with interrupted.results_file.open("a") as file:
        file.write('{"key": "cut by the ki')  # a line that the kill cut
    steps: list[int] = []
    assert plan_of("resumed").run(steps.append) == 1  # the run without training has its line
    assert steps[0] == 16  # and the other goes on after its checkpoint at step 15
    whole, resumed = (
        read_results(tmp_path / out / "results.jsonl") for out in ("whole", "resumed")
    )
    assert [r["scores"] for r in whole] == [r["scores"] for r in resumed]
    assert whole[1]["training"]["losses"] == resumed[1]["training"]["losses"]
    assert len(whole[1]["training"]["losses"]) == 6
    assert plan_of("resumed").run() == 0
    assert not list((tmp_path / "resumed" / "interrupted").iterdir())


def test_arms_see_the_same_sample_numbers_step_by_step() -> None:
    settings = TrainingSettings(batch_tokens=64)
    many, few = (Schedule.plan(n, 16, 16 * 40, 7, settings) for n in (50, 13))
    assert many.order.shape == few.order.shape == (10, 4)
    assert sorted(many.order.ravel()) == list(range(40))  # each of the first 40 samples once
    assert (many.order % 13 == few.order).all()
    assert few.repeats == pytest.approx(40 / 13)
    other = Schedule.plan(50, 16, 16 * 40, 8, settings)
    assert (other.order != many.order).any()


@pytest.mark.parametrize(
    ("samples", "tokens", "message"), [(9, 16 * 40, "more than 4 times each"), (50, 63, "no step")]
)
def test_a_run_that_its_arm_can_t_fill_is_refused(samples: int, tokens: int, message: str) -> None:
    with pytest.raises(TrialError, match=message):
        Schedule.plan(samples, 16, tokens, 0, TrainingSettings(batch_tokens=64))


def test_refusal_comes_before_the_first_run(planted: Path, tmp_path: Path) -> None:
    runs = [{"arm": "genuine", "tokens": 0}, {"arm": "genuine", "tokens": 10**9}]
    plan = make_plan({"data": str(planted / "data"), "runs": runs})
    with pytest.raises(TrialError, match="run of arm genuine: "):
        Runner(plan, tmp_path, lambda _: None, "cpu").run()
    assert not (tmp_path / "results.jsonl").exists()
    plan = make_plan({"data": str(planted / "data"), "runs": [{"arm": "other", "tokens": 10**6}]})
    with pytest.raises(TrialError, match="there are genuine, random"):
        Runner(plan, tmp_path, lambda _: None, "cpu").run()


def test_learning_rate_rises_falls_and_ends_near_zero() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate_at(step, 100, settings) for step in range(100)]
    assert rates[:20] == pytest.approx([(n + 1) / 20 for n in range(20)])
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_padding_and_first_token_are_never_learnt() -> None:
    ids_BT = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    targets = shift(ids_BT, torch.tensor([3, 5])).tolist()
    assert targets == [[6, 7, IGNORED, IGNORED, IGNORED], [6, 7, 8, 9, IGNORED]]


def test_weights_move_with_their_targets(planted: Path) -> None:
    weights = np.ones((1, 4), np.float16)
    weights[0, 2] = 3.0  # of the token 12
    rows = Rows(np.array([[10, 11, 12, 13]], np.uint16), np.array([4], np.int32), weights)
    _, targets_BT, weights_BT = training.DeviceRows(rows, torch.device("cpu")).batch(
        torch.tensor([0])
    )
    assert weights_BT is not None
    assert weights_BT[0][targets_BT[0] == 12].tolist() == [3.0]
    assert weights_BT.sum() == 6


def test_losses_in_chunks_are_those_of_the_whole_model(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "LOGITS_PER_CHUNK", 18 * 64)  # 64 rows per chunk
    loaded = network.load_network(str(planted / "model"), TOKENS)
    ids_BT = torch.from_numpy(held_out_items(12).token_ids_NT.astype(np.int64))
    labels_BT = ids_BT.masked_fill(ids_BT == PAD, IGNORED)
    whole = loaded.hf_model(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss
    whole.backward()
    expected = loaded.head.weight.grad.clone()
    loaded.hf_model.zero_grad()
    targets_BT = shift(ids_BT, (ids_BT != PAD).sum(1))
    losses_N = loaded.losses(loaded.hidden(ids_BT).flatten(0, 1), targets_BT.flatten())
    ours = losses_N.sum() / (targets_BT != IGNORED).sum()
    ours.backward()
    assert ours.item() == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(loaded.head.weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_cudnn_computes_attention_first_while_a_run_trains() -> None:
    """Torch would choose its flash kernel, which takes 1.7 times the time on Hopper."""
    order = torch._C._get_sdp_priority_order()
    with network.fastest_attention():
        assert torch._C._get_sdp_priority_order()[0] == int(SDPBackend.CUDNN_ATTENTION)
    assert torch._C._get_sdp_priority_order() == order


def test_rotary_base_is_raised_by_the_length(planted: Path) -> None:
    """ProLong: 16 times the base for 8 times the length."""
    assert network.raised_base(5e5, 65_536, 8192) == pytest.approx(8e6)
    assert network.raised_base(5e5, 4096, 8192) == 5e5
    loaded = network.load_network(str(planted / "model"), 8 * TOKENS)
    assert network.rope_theta_of(loaded) == pytest.approx(16 * 10_000)
    frequencies = loaded.hf_model.model.rotary_emb.inv_freq
    assert frequencies[1].item() == pytest.approx(160_000 ** (-2 / 16))
    named = network.load_network(str(planted / "model"), TOKENS, rope_theta=7e5)
    assert network.rope_theta_of(named) == 7e5


def test_masters_keep_small_steps_and_exact_frequencies(planted: Path) -> None:
    """A step below bfloat16's resolution must add up; rotary frequencies must not be rounded."""
    loaded = network.load_network(str(planted / "model"), TOKENS)
    frequencies = loaded.hf_model.model.rotary_emb.inv_freq.clone()
    masters = training.Masters(loaded, torch.bfloat16)
    assert loaded.head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.hf_model.model.rotary_emb.inv_freq, frequencies)
    before = masters.weights[0].detach().clone()
    used = next(loaded.hf_model.parameters())
    with torch.no_grad():
        for _ in range(64):
            masters.weights[0].add_(before.abs() * 2**-12)
    masters.publish()
    moved = ((used.float() - before).abs().sum() / before.abs().sum()).item()
    assert moved == pytest.approx(64 / 4096, rel=0.1)  # each step alone would be rounded away
    masters.reset()
    assert torch.equal(masters.weights[0], before)
    assert torch.equal(used, before.to(torch.bfloat16))
    loaded.hidden(torch.tensor([[2, 3, 4]])).sum().backward()
    masters.collect()
    assert masters.weights[0].grad is not None
    assert masters.weights[0].grad.dtype == torch.float32
    assert used.grad is None


def test_training_machine_needs_numpy_torch_and_transformers_alone() -> None:
    """The machine that trains may lack everything else that the platform depends on."""
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import entropylong_assets.audits.trial.runs
"""
    refused = {"dagster", "polars", "pyarrow", "duckdb", "lancedb", "pydantic", "scipy", "fsspec"}
    found = subprocess.run(
        [sys.executable, "-c", script.replace("{refused}", repr(refused))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
