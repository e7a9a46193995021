"""`python -m acceptance._export_gap RUN EXPORT`: vLLM on an exported folder against the trainer's own policy.

The engine samples answers to validation questions from the export; the policy of the run's last checkpoint, adapters
and all, says how probable it finds the same tokens. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

QUESTIONS = 24


def main(run: Path, export: Path) -> None:
    from mmsr1.environment import prepare_process

    prepare_process(threads=1)
    import torch

    from mmsr1.assembly import training as assembly
    from mmsr1.cli import checked, resumed
    from mmsr1.config import register
    from mmsr1.models import checkpoint
    from mmsr1.models.packing import flatten, pack
    from mmsr1.models.policy import Policy

    register()
    config = checked(resumed(run, []))
    files = assembly.policy_files(config)
    policy = Policy(files.model, config.model.logprob_chunk).eval()
    if config.model.freeze_vision:
        policy.freeze_vision()
    checkpoint.read_weights(checkpoint.complete(run / "checkpoints")[-1], policy)
    _, validation, _ = assembly.training_examples(config)
    worker = assembly.rollout_worker(config, files, export, run / "export_check", 0)
    try:
        greedy = replace(assembly.sampling(config), temperature=0.0)
        episodes = [group[0] for group in worker.rollout(validation[:QUESTIONS], 1, greedy, "val", 0)]
    finally:
        worker.close()
    gap = 0.0
    for episode in episodes:
        batch = pack([flatten(episode.segments, files.patches, files.image_token, files.merge)], files.patches)
        with torch.no_grad():
            found = policy(batch).logprobs_T
        gap = max(gap, (found - batch.engine_logprobs_T)[batch.loss_mask_T].abs().max().item())
    tokens = sum(episode.sampled_tokens for episode in episodes)
    sys.stdout.write(json.dumps({"gap_max": gap, "episodes": len(episodes), "tokens": tokens}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
