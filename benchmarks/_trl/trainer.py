"""TRL's `GRPOTrainer` with vLLM colocated, as it comes, for a policy folder; what it needs on a CPU is said here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Read when vLLM is imported. TRL reaches into the engine's objects, which are then in this process.
os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"})

from mmsr1.torchvision_shim import ensure_torchvision  # noqa: E402

ensure_torchvision()

import torch  # noqa: E402
import vllm._custom_ops  # noqa: E402
from datasets import Dataset  # noqa: E402  # pyright: ignore[reportMissingImports]
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402  # pyright: ignore[reportMissingImports]
from trl.chat_template_utils import qwen3_vl_chat_template  # noqa: E402  # pyright: ignore[reportMissingImports]
from trl.generation import vllm_generation  # noqa: E402  # pyright: ignore[reportMissingImports]

# vLLM's packed weights for CPUs cannot be loaded a second time in the way that TRL does it. With torch's own matrix
# product, which is as fast at these sizes, they stay as on a GPU.
vllm._custom_ops._supports_onednn = False

# The key-value cache of our engine. TRL has no knob for it, and vLLM would take what is free.
vllm_generation.LLM = partial(vllm_generation.LLM, kv_cache_memory_bytes=2**28)

CONTROL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def make_trainer(task: dict[str, Any], data: Sequence[dict[str, Any]], **arguments: Any) -> GRPOTrainer:
    """`arguments` are those of the trainer, and under `config` those of its configuration, besides the ones here.

    Qwen2.5-VL's own chat template is refused where there are tools; Qwen3-VL's renders the same text without them.
    """
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(task["policy"])
    tokenizer.eos_token = "<|im_end|>"  # TRL cannot do without; vLLM is told to go on after it
    processor = Qwen2_5_VLProcessor(
        image_processor=AutoImageProcessor.from_pretrained(task["policy"]),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=qwen3_vl_chat_template,
    )
    banned = {tokenizer.convert_tokens_to_ids(token): -100.0 for token in CONTROL}  # a sampled one would crash it
    extra = arguments.pop("config")
    config = GRPOConfig(
        output_dir=str(Path(task["scratch"]) / "trl"),
        num_generations=task["rollouts"],
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=1024,
        generation_kwargs={"ignore_eos": True, "logit_bias": banned, "max_tokens": task["tokens"]},
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        shuffle_dataset=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **extra,
    )
    return GRPOTrainer(
        model=Qwen2_5_VLForConditionalGeneration.from_pretrained(task["policy"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(list(data)),
        processing_class=processor,
        reward_funcs=every_second_is_better,
        **arguments,
    )


def as_data(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows of a task as TRL takes them."""
    return [
        {"prompt": [{"role": "user", "content": row["question"]}], "image": Image.open(row["image"])} for row in rows
    ]


def every_second_is_better(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float(index % 2) for index in range(len(completions))]


def after(work: Callable[..., Any], then: Callable[[Any], None]) -> Callable[..., Any]:
    """`work`, whose result `then` sees."""

    def both(*arguments: Any, **named: Any) -> Any:
        result = work(*arguments, **named)
        then(result)
        return result

    return both
