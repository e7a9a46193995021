"""A random Qwen2.5-VL of about 400,000 parameters, saved as a Hugging Face folder.

The real architecture at toy size, vision tower included, with a byte-level tokenizer that has Qwen's control tokens.
"""

from __future__ import annotations

from pathlib import Path

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402

TEXT = "what is shown in the picture? <search> <answer> </answer> user assistant"
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the beginnings of a few words. Not trained: a trainer breaks ties another way in every process."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [word for word, _ in split.pre_tokenize_str(TEXT)]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast, tied: bool) -> Qwen2_5_VLConfig:
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 384,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "out_hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "fullatt_block_indexes": [1],
            "window_size": 112,
        },
        tie_word_embeddings=tied,
        **{field: tokenizer.convert_tokens_to_ids(token) for field, token in ids.items()},
    )


def random_weights(config: Qwen2_5_VLConfig, seed: int, scale: float = 0.15) -> Qwen2_5_VLForConditionalGeneration:
    """A model in float32 whose weights, vision tower included, are large enough for every one to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    perturb(model, seed, scale)
    return model


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int, scale: float) -> None:
    """Add the same Gaussian noise for the same seed to every parameter, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def save_tiny_model(folder: Path, tied: bool, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Write weights, tokenizer and processor, and return the model."""
    tokenizer = tiny_tokenizer()
    model = random_weights(tiny_config(tokenizer, tied), seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    ).save_pretrained(folder)
    return model
