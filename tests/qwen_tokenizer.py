"""Qwen2.5's own tokenizer without the network: the vocabulary lies in the wheel of `dashscope`.

Real tokenizers split the protocol's tags over several tokens and merge their ends with what follows; the tiny one of
the emblem world does neither.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import lru_cache
from pathlib import Path

from transformers import AddedToken, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmsr1.data.emblem.tokenizer import CONTROL_TOKENS

# After the control tokens, ids 151643 and up in this order: added tokens that count as ordinary text.
ORDINARY = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


@lru_cache
def qwen_ranks() -> dict[bytes, int]:
    """The 151,643 byte strings of the vocabulary; a lower rank is merged first."""
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.origin is not None, "dashscope is missing: install the extra `dev`"
    lines = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@lru_cache
def qwen_tokenizer() -> Qwen2Tokenizer:
    """The fast tokenizer that `AutoTokenizer` makes of a Qwen2.5-VL folder."""
    ranks = qwen_ranks()
    letters = bytes_to_unicode()
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    # tiktoken merges any neighbours whose union is in the vocabulary, the lowest rank first; here each way is listed.
    merges = [
        (spelt[token[:cut]], spelt[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
    tokenizer = Qwen2Tokenizer(vocabulary, merges)  # pyright: ignore[reportArgumentType]  (pairs are what it takes)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ORDINARY])
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer
