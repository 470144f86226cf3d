"""The CUDA paths against float64 and against the plain definition. Skipped without a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from entropylong_assets.stages.entropy import attention, chunk_attention
from entropylong_assets.stages.entropy.chunked import ChunkedScorer, possible_ways
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kernels import Head, entropy_and_surprisal
from entropylong_assets.stages.entropy.model import score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets_tests.stages.entropy import tiny
from entropylong_assets_tests.stages.entropy.test_engine import largest_difference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def float64(hidden: Any, head: Head, targets: Any) -> tuple[Any, Any]:
    z = hidden.double() @ head.weight_VD.double().T
    if head.bias_V is not None:
        z = z + head.bias_V.double()
    if head.softcap:
        z = head.softcap * torch.tanh(z / head.softcap)
    log_p = torch.log_softmax(z, -1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("vocabulary", [1000, 32_000, 49_152, 128_256, 262_144])
@pytest.mark.parametrize(("positions", "size"), [(1, 64), (130, 576), (700, 640), (12_000, 64)])
@pytest.mark.parametrize("kind", ["plain", "capped", "biased"])
def test_fused_head(vocabulary: int, positions: int, size: int, kind: str) -> None:
    """Guards against rows or columns beyond the end in the last tile."""
    torch.manual_seed(vocabulary + positions)
    hidden = torch.randn(positions, size, device="cuda") * torch.rand(positions, 1, device="cuda")
    hidden, weight = hidden.bfloat16(), torch.randn(vocabulary, size, device="cuda").bfloat16()
    weight *= 8 * size**-0.5
    head = Head(
        weight,
        torch.randn(vocabulary, device="cuda").bfloat16() if kind == "biased" else None,
        15.0 if kind == "capped" else None,
    )
    targets = torch.randint(0, vocabulary, (positions,), device="cuda")
    entropy, surprisal = entropy_and_surprisal(hidden, targets, head)
    rows = torch.randperm(positions, device="cuda")[:200]
    rows[-1] = positions - 1
    expected = float64(hidden[rows], head, targets[rows])
    assert (entropy[rows] - expected[0]).abs().max() < 1e-3
    assert (surprisal[rows] - expected[1]).abs().max() < 1e-3
    assert entropy.isfinite().all()
    assert positions == 1 or expected[0].std() > 0.1


def test_memory_of_a_long_root() -> None:
    """131,072 positions of a 128,256-token vocabulary: all logits would take 67 GB."""
    hidden = torch.randn(131_072, 256, device="cuda").bfloat16()
    head = Head(torch.randn(128_256, 256, device="cuda").bfloat16())
    targets = torch.zeros(131_072, dtype=torch.int64, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    entropy_and_surprisal(hidden, targets, head)
    assert torch.cuda.max_memory_allocated() - before < 256 << 20


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(
    ("tokens", "size", "width"), [(1, 64, 128), (333, 576, 1536), (129, 64, 72)]
)
def test_gated_mlp(activation: str, tokens: int, size: int, width: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    from entropylong_assets.stages.entropy import gated_cuda

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=size, intermediate_size=width, hidden_act=activation)
    mlp = LlamaMLP(config).cuda().bfloat16()
    states = torch.randn(1, tokens, size, device="cuda").bfloat16()
    with torch.no_grad():
        gate, up, down = (m.weight.double() for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        x = states.double()
        act = torch.nn.functional.silu if activation == "silu" else torch.nn.functional.gelu
        extra = {} if activation == "silu" else {"approximate": "tanh"}
        expected = (act(x @ gate.T, **extra) * (x @ up.T)) @ down.T
        assert gated_cuda.fits(mlp)
        got = gated_cuda.GatedMLP(mlp)(states).double()
        after = mlp(states).double()
    scale = expected.norm()
    assert (got - expected).norm() / scale < 5e-3
    assert (after - expected).norm() / scale < 1e-2, "the model's own MLP must still be right"


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_packed_flash_attention(window: int, size: int) -> None:
    torch.manual_seed(1)
    lengths = [1, 77, 300, 128, 511]
    borders = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device="cuda")
    total = sum(lengths)
    query = torch.randn(total, 8, size, device="cuda").bfloat16()
    key, value = torch.randn(2, total, 2, size, device="cuda").bfloat16()
    got = attention._attend(query, key, value, borders, 512, 0.1, window)
    oracle = attention.attend_one_by_one(
        query.float(), key.float(), value.float(), borders, 0.1, window
    )
    assert (got.float() - oracle).norm() / oracle.norm() < 1e-2


@pytest.mark.parametrize("window", [0, 50, 600])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_flash_attention_of_the_last_tokens(window: int, size: int) -> None:
    """Guards against kernels that align causal attention to the upper left."""
    torch.manual_seed(1)
    queries, keys = [1, 77, 300, 511], [400, 77, 1029, 512]
    borders, key_borders = (
        torch.tensor(np.cumsum([0, *x]), dtype=torch.int32, device="cuda") for x in (queries, keys)
    )
    query = torch.randn(sum(queries), 8, size, device="cuda").bfloat16()
    key, value = torch.randn(2, sum(keys), 2, size, device="cuda").bfloat16()
    got = attention.attend_packed(
        attention.AttentionInputs(
            query, key, value, borders, 512, 0.1, window, key_borders, longest_keys=1029
        )
    )
    oracle = attention.attend_one_by_one(
        query.float(), key.float(), value.float(), borders, 0.1, window, key_borders
    )
    assert (got.float() - oracle).norm() / oracle.norm() < 1e-2


@pytest.mark.parametrize("kept", [0, 1, 777])
@pytest.mark.parametrize("rows", [128, 511, 1024])
@pytest.mark.parametrize("size", [64, 128])
def test_cudnn_attention_of_the_last_tokens(kept: int, rows: int, size: int) -> None:
    if not chunk_attention.cudnn_pays(torch.device("cuda"), torch.bfloat16):
        pytest.skip("cuDNN's attention is not used on this device")
    torch.manual_seed(1)
    query = torch.randn(rows, 8, size, device="cuda").bfloat16()
    key, value = torch.randn(2, rows + kept, 2, size, device="cuda").bfloat16()
    got = chunk_attention.attend_with_cudnn(query, key, value, 0.1)
    borders, key_borders = (torch.tensor([0, n]) for n in (rows, rows + kept))
    oracle = attention.attend_one_by_one(
        query.float(), key.float(), value.float(), borders, 0.1, 0, key_borders
    )
    assert got.is_contiguous()
    assert (got.float() - oracle).norm() / oracle.norm() < 1e-2


@pytest.mark.parametrize("kind", [tiny.llama, tiny.gemma3])
@pytest.mark.parametrize("compiled", [False, True])
def test_chunks(kind: Any, compiled: bool) -> None:
    """Every way against the float32 model of the same rounded weights."""
    model = kind()
    model.hf_model.to("cuda", torch.bfloat16)
    request = ScoringRequest(np.random.default_rng(0).integers(3, 200, 400), np.arange(1, 400))
    scorer = PackedScorer(model, compile_layers=compiled)
    got = {}
    for way in possible_ways(scorer):
        chunked = ChunkedScorer(scorer, chunk_tokens=150, ways=[way])
        assert chunked.way_for(request) == way
        got[way] = chunked.score_in_chunks(request, way)
    assert "packed" in got
    model.hf_model.float()
    plain = score_plainly(model, request)
    for scores in got.values():
        assert np.abs(scores.surprisal_N - plain.surprisal_N).mean() < 0.05


@pytest.mark.parametrize("kind", [tiny.llama, tiny.gemma3])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 1.0)])
def test_engine(kind: Any, compiled: bool, dtype: str, limit: float) -> None:
    """bfloat16 is compared with the float32 model of the same rounded weights."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = kind()
    model.hf_model.to("cuda", getattr(torch, dtype))
    requests = tiny.requests(30, seed=4)
    scorer = PackedScorer(model, compile_layers=compiled, pack_tokens=400)
    assert scorer.mode == "packed"
    scores = scorer.score(requests)
    model.hf_model.float()
    plain = [score_plainly(model, r) for r in requests]
    assert largest_difference(scores, plain) < limit
    mean = np.mean(
        [np.abs(a.entropy_N - b.entropy_N).mean() for a, b in zip(scores, plain, strict=True)]
    )
    assert mean < limit / 20


@pytest.mark.parametrize("bias", [False, True])
def test_float8_linear(bias: bool) -> None:
    """Guards against confused scales of outputs and tokens, and outputs in the wrong order."""
    from entropylong_assets.stages.entropy import float8_cuda

    torch.manual_seed(2)
    linears = [torch.nn.Linear(64, n, bias=bias).cuda().bfloat16() for n in (32, 16)]
    states = torch.randn(1, 37, 64, device="cuda").bfloat16()
    states *= torch.logspace(-2, 2, 37, device="cuda")[None, :, None].bfloat16()
    with torch.no_grad():
        linears[1].weight *= 50
        got = float8_cuda.Float8Linear(linears)(states)[0].double()
        for row, one in zip(got.split([32, 16], -1), linears, strict=True):
            expected = torch.nn.functional.linear(
                states[0].double(), one.weight.double(), one.bias.double() if bias else None
            )
            off = (row - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert off.max() < 0.08, "of every token, small or large"


@pytest.mark.parametrize("kind", [tiny.llama, tiny.gemma3])
def test_float8_engine(kind: Any) -> None:
    """Near the plain scores, no leak between packed sequences, and the model unchanged."""
    model = kind()
    model.hf_model.to("cuda", torch.bfloat16)
    requests = tiny.requests(30, seed=4)
    probe = score_plainly(model, requests[0])
    scorer = PackedScorer(model, compile_layers=False, pack_tokens=400, float8=True)
    assert scorer.mode == "packed"
    scores = scorer.score(requests)
    assert largest_difference([probe], [score_plainly(model, requests[0])]) == 0
    exact = PackedScorer(model, compile_layers=False, pack_tokens=400).score(requests)
    off = [np.abs(a.entropy_N - b.entropy_N).mean() for a, b in zip(scores, exact, strict=True)]
    assert 1e-3 < np.mean(off) < 0.3, "approximate, and no more than that"
