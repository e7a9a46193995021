"""Peak memory of the loss with a large vocabulary, above the model with its gradients.

One decoder layer, hidden 256, vocabulary 151,936, 4 sequences of 2,048 tokens, float32, forward and backward. Ours
(packed, chunked head) beside the full logits of the same model and the path of TRL's GRPO trainer, in TRL's own
environment. Each runs in a process of its own, and once on a few tokens before it is measured: code that is loaded and
kernels that are set up then are no part of the figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import _peer
from benchmarks._memory import available_mib, peak_above_now_mib

SEQUENCES, LENGTH, VOCABULARY, HIDDEN, CHUNK = 4, 2048, 151_936, 256, 256
WARM_UP = 8  # tokens of each sequence
# glibc keeps freed buffers of some MiB for later, more or fewer of them from run to run; at these settings it gives
# everything larger than a page or two back at once, and the figure is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure() -> dict[str, Any]:
    """Peaks in MiB; None for TRL where it cannot be installed, and for full logits where they would not fit."""
    figures: dict[str, Any] = {"tokens": SEQUENCES * LENGTH, "vocabulary": VOCABULARY, "chunk": CHUNK}
    figures["ours_mib"] = _in_a_process("ours")
    figures["full_logits_mib"] = _in_a_process("full_logits") if available_mib() > _full_logits_need() else None
    try:
        figures |= {"trl_mib": _in_a_process("trl", str(_peer.python())), "trl_version": _peer.TRL}
    except _peer.PeerError as error:
        sys.stderr.write(f"{error}\n")
        figures |= {"trl_mib": None, "trl_version": None}
    return figures


def _full_logits_need() -> float:
    """MiB: the logits, their log-softmax and its gradient, and as much again as the smallest of these to spare."""
    return 4 * SEQUENCES * LENGTH * VOCABULARY * 4 / 2**20


def _in_a_process(name: str, python: str = sys.executable) -> float:
    command = [python, "-m", "benchmarks.loss_memory", name]
    # Its warnings and its errors go where ours go.
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR}).stdout
    return json.loads(out.splitlines()[-1])


def _model() -> Any:
    """The model with its gradients, which the figures leave out."""
    import torch

    from mmsr1.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 2 * HIDDEN,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
        },
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def _ours(model: Any, length: int) -> Callable[[], object]:
    from mmsr1.models.grpo import LossSpec, MiniBatchSize, policy_loss
    from mmsr1.models.packing import pack
    from mmsr1.models.policy import Policy

    policy = Policy(model, chunk=CHUNK)
    batch = pack([_sequence(ids) for ids in _token_ids(length)], _no_pictures, _advantages())
    size = MiniBatchSize(int(batch.loss_mask_T.sum()), SEQUENCES)

    def work() -> None:
        stats = policy(batch)
        policy_loss(
            stats.logprobs_T,
            stats.logprobs_T.detach(),
            batch.advantages_T,
            batch.loss_mask_T,
            batch.sequence_ids_T,
            size,
            LossSpec(),
            entropy_T=stats.entropy_T,
        ).loss.backward()

    return work


def _full_logits(model: Any, length: int) -> Callable[[], object]:
    import torch

    ids = torch.from_numpy(_token_ids(length))
    places = torch.arange(length).expand(3, SEQUENCES, length)
    advantages = torch.tensor(_advantages())[:, None]

    def work() -> None:
        hidden = model.model.language_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state
        log_p = model.lm_head(hidden[:, :-1]).float().log_softmax(-1)
        _padded_loss(log_p.gather(-1, ids[:, 1:, None])[:, :, 0], advantages).backward()

    return work


def _trl(model: Any, length: int) -> Callable[[], object]:
    """As `GRPOTrainer` of TRL 1.16 does it: the model's forward replaced by one with a tiled head."""
    import torch
    from trl.trainer.utils import add_fused_lm_head  # pyright: ignore[reportMissingImports]  (optional)

    ids = torch.from_numpy(_token_ids(length))
    advantages = torch.tensor(_advantages())[:, None]
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))

    def work() -> None:
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
        _padded_loss(out.log_probs, advantages).backward()

    return work


def _padded_loss(logprobs: Any, advantages: Any, clip: float = 0.2) -> Any:
    """The clipped objective, mean over tokens, for log-probs [B, L - 1] and advantages [B, 1]."""
    import torch

    ratio = (logprobs - logprobs.detach()).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def _token_ids(length: int) -> Any:
    import numpy as np

    # Below the control tokens, the image token among them.
    return np.random.default_rng(0).integers(VOCABULARY - 1000, size=(SEQUENCES, length))


def _advantages() -> list[float]:
    return [1.0 if index % 2 else -1.0 for index in range(SEQUENCES)]


def _sequence(ids: Any) -> Any:
    import numpy as np

    from mmsr1.models.packing import FlatSequence

    learned = np.arange(len(ids)) > 0
    return FlatSequence(
        token_ids=ids,
        positions=np.broadcast_to(np.arange(len(ids)), (3, len(ids))),
        image_mask=np.zeros(len(ids), dtype=np.bool_),
        loss_mask=learned,
        weights=learned.astype(np.float32),
        engine_logprobs=np.zeros(len(ids), dtype=np.float32),
        region=learned.astype(np.int64),
        versions=learned.astype(np.int64),
        images=(),
    )


def _no_pictures(picture: Any) -> Any:
    raise AssertionError("this benchmark shows no pictures")


def main(name: str) -> float:
    """The peak of one of the three in this process, MiB."""
    prepare = {"ours": _ours, "full_logits": _full_logits, "trl": _trl}[name]
    model = _model()
    prepare(model, WARM_UP)()
    return peak_above_now_mib(prepare(model, LENGTH))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
