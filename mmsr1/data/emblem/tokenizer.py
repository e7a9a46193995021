"""A small byte-level BPE tokenizer with Qwen's control tokens, trained on the emblem world's own words.

About 550 tokens. Every name and value is exactly two tokens (a first syllable with its leading space, a second one),
so that copying one from search results is two induction steps; the protocol's tags are single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmsr1.data.emblem.world import FACTS, FIRST_SYLLABLES, SECOND_SYLLABLES
from mmsr1.rollout.protocol import TAGS

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def build_tokenizer(sentences: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train on the world's sentences and syllables. Raises ValueError if some name is not two tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [f" {first}" for first in FIRST_SYLLABLES] + list(SECOND_SYLLABLES) + [f" {fact}" for fact in FACTS]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper bound: the words run out of merges long before
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Counted often, the syllables get the first merges, so no merge learned from other words can cut across them.
    tokenizer.train_from_iterator([*words * 100, *sentences], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tags = [tag for name in TAGS for tag in ((f"<{name}>",) if name == "img" else (f"<{name}>", f"</{name}>"))]
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    for first in FIRST_SYLLABLES:
        for second in SECOND_SYLLABLES:
            if len(tokenizer.encode(f" {first}{second}").ids) != 2:
                raise ValueError(f"the name {first}{second} is not two tokens; choose other syllables")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
