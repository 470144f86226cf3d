"""The model of a trial: loading, the raised rotary base, and losses that never hold all logits.

Legend: B rows, T tokens of a row, N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from entropylong_assets.audits.trial.folder import TrialError
from entropylong_assets.stages.entropy.network import decoder_of, field_of

IGNORED = -100
LOGITS_PER_CHUNK = 1 << 28
"""Logits of the loss in memory at once: 1 GiB in float32."""

ROTARY_EXPONENT = 4 / 3
"""The base grows with this power of the length: ProLong (Gao et al., arXiv 2410.02660)
takes 16 times the base for 8 times the length, more than the d/(d-2) of NTK-aware scaling. The
paper takes 400 times the base for 16 times the length."""


class Network:
    """A causal language model of transformers, as its decoder and its head.

    Every token attends to every earlier token of its row: no mask of documents, positions from 0.
    """

    def __init__(self, hf_model: Any) -> None:
        self.hf_model = hf_model
        self.decoder = decoder_of(hf_model)
        self.head: nn.Linear = hf_model.get_output_embeddings()
        config = hf_model.config.get_text_config(decoder=True)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        # Granite divides its logits, Cohere multiplies them.
        self._scale = getattr(config, "logit_scale", None) or 1.0
        self._scale /= getattr(config, "logits_scaling", None) or 1.0

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def hidden(self, token_ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D] after the last norm."""
        # Without a mask SDPA takes its causal kernel; positions are 0..T-1.
        hidden_BTD: Tensor = self.decoder(
            input_ids=token_ids_BT, attention_mask=None, use_cache=False
        ).last_hidden_state
        return hidden_BTD

    def logits(self, hidden_ND: Tensor, *, exact: bool = False) -> Tensor:
        """Logits [N, V], float32. exact: also multiplied in float32, for evaluation."""
        if exact:
            bias = None if self.head.bias is None else self.head.bias.float()
            logits_NV = linear(hidden_ND.float(), self.head.weight.float(), bias)
        else:
            logits_NV = self.head(hidden_ND).float()
        if self._scale != 1.0:
            logits_NV = logits_NV * self._scale
        if self._cap:
            logits_NV = torch.tanh(logits_NV / self._cap) * self._cap
        return logits_NV

    def losses(self, hidden_ND: Tensor, targets_N: Tensor, *, exact: bool = False) -> Tensor:
        """Cross-entropy of each target in nats, float32; 0 where the target is IGNORED.

        Computed in chunks, and again in the backward pass, so that [N, V] never exists.
        """

        def of_chunk(hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
            logits_CV = self.logits(hidden_CD, exact=exact)
            return cross_entropy(logits_CV, targets_C, ignore_index=IGNORED, reduction="none")

        size = max(64, LOGITS_PER_CHUNK // self.head.weight.shape[0])
        parts = []
        for hidden_CD, targets_C in zip(hidden_ND.split(size), targets_N.split(size), strict=True):
            if torch.is_grad_enabled():
                parts.append(checkpoint(of_chunk, hidden_CD, targets_C, use_reentrant=False))
            else:
                parts.append(of_chunk(hidden_CD, targets_C))
        return torch.cat(parts)

    def compile_layers(self) -> None:
        """Compile each layer of the decoder by itself: quick to compile, and nearly as fast."""
        for layer in getattr(self.decoder, "layers", ()):
            layer.compile()


_BACKENDS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
"""Attention kernels, fastest first: on Hopper cuDNN's take 0.6 times the time of torch's flash
kernel (benchmarks/RESULTS.md). Each call takes the first one that supports it."""


@contextmanager
def fastest_attention() -> Iterator[None]:
    """Let torch choose kernels of attention in this order, for Hopper; then it is as before."""
    with sdpa_kernel(list(_BACKENDS), set_priority=True):
        yield


def shift(token_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Targets [B, T]: of each position the next token; IGNORED where that is padding or none."""
    targets_BT = torch.full_like(token_ids_BT, IGNORED)
    targets_BT[:, :-1] = token_ids_BT[:, 1:]
    last = torch.arange(token_ids_BT.shape[1], device=token_ids_BT.device) + 1
    return targets_BT.masked_fill(last[None] >= lengths_B[:, None], IGNORED)


def raised_base(base: float, tokens: int, known_tokens: int) -> float:
    """The rotary base for rows of `tokens`, of a model that knows rows of `known_tokens`."""
    return base * max(1.0, tokens / known_tokens) ** ROTARY_EXPONENT


def load_network(
    reference: str,
    tokens: int,
    *,
    rope_theta: float | None = None,
    device: str = "cpu",
) -> Network:
    """Load a model in float32 and raise its rotary base for rows of `tokens`.

    reference: as `scoring.model`. rope_theta: the base; None: by `raised_base`. Raises
    TrialError if the model has no rotary embedding, or if its decoder and head don't give its
    logits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = folder_of_model(reference)
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config(decoder=True)
    rotary = getattr(text, "rope_parameters", None)
    if not rotary:
        raise TrialError(f"model {reference}: it has no rotary embedding; take another model")
    rotary = rotary.get("full_attention", rotary)  # Gemma: sliding layers keep their base
    known = field_of(text, "max_position_embeddings") or tokens
    rotary["rope_theta"] = float(rope_theta or raised_base(rotary["rope_theta"], tokens, known))
    text.max_position_embeddings = max(known, tokens)
    hf_model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )
    network = Network(hf_model.to(device).eval())
    _check_logits(network, reference)
    return network


def rope_theta_of(network: Network) -> float:
    rotary = network.hf_model.config.get_text_config(decoder=True).rope_parameters
    return float(rotary.get("full_attention", rotary)["rope_theta"])


def folder_of_model(reference: str) -> str:
    """What transformers loads: a GGUF file or a file of a package is converted once, to a folder.

    Raises ModelError if there is no such model.
    """
    if not reference.startswith("pkg://") and not reference.endswith(".gguf"):
        return reference
    # Only these need more of the package's dependencies.
    from entropylong_assets.stages.entropy.weights import folder_of
    from entropylong_assets.stages.model_files import locate

    return str(folder_of(locate(reference)))


@torch.no_grad()
def _check_logits(network: Network, reference: str) -> None:
    """Raises TrialError unless decoder and head give the logits of the whole model."""
    vocabulary = network.head.weight.shape[0]
    ids_BT = (torch.arange(24, device=network.device)[None] * 977 + 11) % vocabulary
    whole = network.hf_model(input_ids=ids_BT, use_cache=False).logits[0].float()
    ours = network.logits(network.hidden(ids_BT)[0], exact=True)
    if not torch.allclose(whole, ours, atol=1e-2, rtol=1e-3):
        raise TrialError(
            f"model {reference}: its logits are not those of its decoder and head; the trial can't "
            "train models of this class"
        )
