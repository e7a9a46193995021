"""The tiny starting architecture: the real Qwen2.5-VL class at about 0.8M parameters, made from nothing."""

from __future__ import annotations

from typing import Any

import torch

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402


def tiny_config(tokenizer: Any, hidden: int, layers: int, vision_hidden: int, vision_depth: int) -> Qwen2_5_VLConfig:
    """Four heads of a quarter of the width each, two of them key/value; half of a head's pairs turn with M-RoPE."""
    pairs = hidden // 4 // 2
    spatial = pairs * 3 // 8
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 32) * 32,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 2 * hidden,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [pairs - 2 * spatial, spatial, spatial],
            },
            "tie_word_embeddings": True,
            "initializer_range": 0.06,  # at 0.02 a model this small learns neither copying nor recognition
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "intermediate_size": 2 * vision_hidden,
            "num_heads": 4,
            "out_hidden_size": hidden,
            "window_size": 112,
            "fullatt_block_indexes": [vision_depth - 1],
            "initializer_range": 0.06,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        initializer_range=0.06,  # pyright: ignore[reportCallIssue]  (not declared, but read by _init_weights)
    )


def tiny_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def tiny_image_processor(max_tokens: int = 64) -> Qwen2VLImageProcessorPil:
    """Pictures keep their size from 28 x 28 (one token) up to `max_tokens` tokens; larger ones are scaled down."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * max_tokens})
