"""The token that fills samples, and what trainers must know of the scoring model's tokenizer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from entropylong_assets.stages.entropy.model import Tokenizer
    from entropylong_assets.stages.entropy.settings import ScoringModelSettings

_BORDER = re.compile(r"^</?s>$|end|eo[dmst]|bo[dst]|start|begin|sep\b|cls|mask|turn|<\|im_", re.I)
"""Texts of special tokens that begin, end or separate documents, or have a meaning in templates."""
_RESERVED = re.compile(r"reserved|unused|placeholder|dummy|extra", re.I)


@dataclass(frozen=True)
class TokenizerFacts:
    """The scoring model's tokenizer, as a trainer of its samples must know it."""

    model: str
    """The scoring model as `scoring.model` names it."""
    vocab_size: int
    """Entries of the model's vocabulary; every id is below it."""
    pad_id: int
    """Fills samples. Text never encodes to it if it is a special token other than unk."""
    pad_token: str | None
    eos_id: int | None
    eos_token: str | None
    bos_id: int | None
    bos_token: str | None
    sample_begins_with: tuple[int, ...]
    """Ids that begin every sample: the special tokens before every scored sequence, or none."""
    separator: str
    """Text that ends every context and every root."""
    separator_ids: tuple[int, ...]
    sample_tokens: int
    """Length of every sample (tokens)."""


def padding_id(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int:
    """Return the id that fills samples.

    Trainers find the borders of documents at EOS and BOS tokens, and some models give their EOS
    token as padding, so the choice is, in this order: the tokenizer's padding token; a reserved
    special token; another special token; unk; EOS; BOS; 0. Tokens that mark borders are passed over
    until EOS, and so are ids that are not below `vocab_size`, which the model cannot read.
    """
    borders = {tokenizer.eos_token_id, tokenizer.bos_token_id}

    def is_usable(token_id: int | None) -> bool:
        if token_id is None or token_id >= vocab_size or token_id in borders:
            return False
        return not _BORDER.search(str(tokenizer.convert_ids_to_tokens(token_id)))

    unk = tokenizer.unk_token_id
    special = sorted(
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id != unk and is_usable(token_id)
    )

    def rank(token_id: int) -> int:
        text = str(tokenizer.convert_ids_to_tokens(token_id))
        named = (re.search("pad", text, re.I), _RESERVED.search(text))
        return next((place for place, match in enumerate(named) if match), len(named))

    usable = [i for i in (tokenizer.pad_token_id,) if is_usable(i)]
    usable += sorted(special, key=lambda i: (rank(i), i))
    usable += [i for i in (unk,) if is_usable(i)]
    borders_last = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, 0)
    usable += [i for i in borders_last if i is not None and i < vocab_size]
    return int(usable[0])


def tokenizer_facts(
    tokenizer: Tokenizer, settings: ScoringModelSettings, vocab_size: int, sample_tokens: int
) -> TokenizerFacts:
    """Return what trainers must know. vocab_size: of the model; sample_tokens: of a sample."""
    hf, pad = tokenizer.hf_tokenizer, padding_id(tokenizer.hf_tokenizer, vocab_size)

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else str(hf.convert_ids_to_tokens(token_id))

    return TokenizerFacts(
        model=settings.model,
        vocab_size=vocab_size,
        pad_id=pad,
        pad_token=text(pad),
        eos_id=hf.eos_token_id,
        eos_token=text(hf.eos_token_id),
        bos_id=hf.bos_token_id,
        bos_token=text(hf.bos_token_id),
        sample_begins_with=tokenizer.bos_ids,
        separator=settings.separator,
        separator_ids=tokenizer.separator_ids,
        sample_tokens=sample_tokens,
    )
