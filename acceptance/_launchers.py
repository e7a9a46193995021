"""Line 6 of issue H: two short runs of train.py under every launcher that one machine has."""

from __future__ import annotations

import shutil
import sys

from acceptance.lines import OUTPUT, Check, command, holds, reported, summary
from mmsr1.sweep import planned

_SHORT = ("model=emblem", "rollout=transformers", "trainer.max_steps=1", "data.val_size=12", "data.train_size=12")
_SHORT += ("algorithm.prompts_per_step=2", "algorithm.group_size=2", "algorithm.mini_batches=1")
_LAUNCHERS = (("basic",), ("joblib", "hydra.launcher.n_jobs=2"), ("slurm_local",))


def launchers() -> list[Check]:
    """The same runs each time: all finish, and give the same reward for the same seed."""
    checks: list[Check] = []
    rewards: dict[str, list[float]] = {}
    for name, *more in _LAUNCHERS:
        folder = OUTPUT / f"launcher_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        where = (f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${name}__seed${seed}", f"hydra/launcher={name}")
        arguments = ("-m", *_SHORT, "trainer.counterfactual=0", "seed=0,1", *where, *more)
        result, seconds = command(sys.executable, "train.py", *arguments, check=False)
        done = (
            "2 of 2 jobs done in " in result.stdout and f": {folder.relative_to(OUTPUT.parents[1])}\n" in result.stdout
        )
        checks.append(holds("6", f"{name}: both runs finish", result.returncode == 0 and done))
        checks.append(reported("6", f"{name}: seconds", f"{seconds:.0f}"))
        rewards[name] = [summary(job.folder)["final"]["reward"] for job in planned(folder)] if done else []
    same = rewards["joblib"] == rewards["slurm_local"] == rewards["basic"] != []
    return [*checks, holds("6", "the same rewards under each", same, str(rewards["basic"]))]
