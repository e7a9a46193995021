"""All that a training run is put together of."""

from mmsr1.assembly.data import (
    emblem_store,
    examples,
    mixture,
    prompt_schedule,
    remarks,
    skipped_rows,
    training_examples,
    world_spec,
)
from mmsr1.assembly.imitation import TraceData
from mmsr1.assembly.policy import (
    base_policy,
    correction_spec,
    loss_spec,
    optim_spec,
    policy_files,
    renderer,
    sharding,
    starting_weights,
)
from mmsr1.assembly.rollout import (
    max_staleness,
    reward_spec,
    rollout_callback,
    rollout_worker,
    sampling,
)
from mmsr1.assembly.run import Start, complete, resume_point, run_record, summary
from mmsr1.assembly.services import ledger_folder
from mmsr1.assembly.tools import SearchTools, check_tools, frozen_web, search_tools
from mmsr1.assembly.warmup import WarmupData
from mmsr1.models.loading import save_policy

__all__ = [
    "SearchTools",
    "Start",
    "TraceData",
    "WarmupData",
    "base_policy",
    "check_tools",
    "complete",
    "correction_spec",
    "emblem_store",
    "examples",
    "frozen_web",
    "ledger_folder",
    "loss_spec",
    "max_staleness",
    "mixture",
    "optim_spec",
    "policy_files",
    "prompt_schedule",
    "remarks",
    "renderer",
    "resume_point",
    "reward_spec",
    "rollout_callback",
    "rollout_worker",
    "run_record",
    "sampling",
    "save_policy",
    "search_tools",
    "sharding",
    "skipped_rows",
    "starting_weights",
    "summary",
    "training_examples",
    "world_spec",
]
