"""Train a policy to search on demand. One run, top to bottom.

    python train.py +experiment=grpo_balanced
    python train.py -m +experiment=grpo_balanced,grpo_no_penalty seed=0,1

Each rollout step: prompts -> episodes (policy and search tools, several turns) -> rewards -> groups -> packed batch ->
GRPO loss -> new weights -> engine. The rollouts happen in `RolloutCallback`, the update in `GRPOModule`; they meet in
the `RolloutBuffer`. Supervised runs (algorithm=sft) differ in the module and in having no rollouts to train on.
Nothing heavy is imported before the configuration has been checked, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr1.cli import run_command
from mmsr1.config import Config, check

if TYPE_CHECKING:
    from lightning import Trainer

    from mmsr1.models.loading import PolicyFiles
    from mmsr1.models.module import PolicyModule
    from mmsr1.rollout.callback import RolloutCallback
    from mmsr1.run_directory import RunDirectory


def main(config: Config, output: Path) -> None:
    """One training job; its run directory is complete also after a failure or an interrupt."""
    from mmsr1.environment import prepare_process

    processes = config.trainer.devices * config.trainer.num_nodes
    check(processes == 1, "trainer.devices", processes, "rollouts are not shared out among processes yet; use 1")
    prepare_process(config.trainer.threads)
    from omegaconf import OmegaConf

    from mmsr1.run_directory import RunDirectory, git_commit, versions

    run, started = RunDirectory(output), time.perf_counter()
    commit = git_commit(Path(__file__).resolve().parent)
    run.start(" ".join(["python", *sys.argv]), config.seed, OmegaConf.to_yaml(config), versions(), commit)
    status, error = "failed", None
    try:
        status = train(config, run)
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
    except BaseException as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())
        raise
    finally:
        run.finish(status, time.perf_counter() - started, error)  # type: ignore[arg-type]
        _report(run)
    if status == "interrupted":
        sys.stderr.write(f"interrupted; what was written so far is in {run.path}\n")
        sys.exit(130)


def train(config: Config, run: RunDirectory) -> str:
    """The skeleton: data, policy, tools, engine, module, trainer; then the summary. Returns the final status."""
    import torch
    from lightning import seed_everything

    from mmsr1 import assembly
    from mmsr1.report.progress import RunProgress

    started = time.perf_counter()
    seed_everything(config.seed, verbose=False)
    torch.set_num_threads(config.trainer.threads)
    with RunProgress(config.trainer.max_steps) as progress:
        progress.say(f"run directory: {run.path}")
        progress.begin("data", 1)
        examples, validation, skipped = assembly.training_examples(config)
        for line in (*assembly.skipped_rows(skipped), *assembly.remarks(config, examples)):
            progress.say(line)
        files = assembly.policy_files(config)
        tools = assembly.search_tools(config)
        weights = assembly.starting_weights(config, files, run.path)

        module, buffer, data = _algorithm(config, files, examples)
        callback = assembly.rollout_callback(
            config,
            lambda: assembly.rollout_worker(config, files, tools, weights),
            buffer,
            validation,
            tools,
            run,
            progress,
        )
        trainer = _trainer(config, run.path, callback)
        try:
            trainer.fit(module, data)
        except SystemExit:  # how Lightning leaves after Ctrl-C
            return "interrupted"
        finally:
            _summary(run, callback, assembly.tool_counts(tools), len(skipped), time.perf_counter() - started)
        export_dtype = getattr(torch, config.model.export_dtype)
        assembly.save_policy(run.path / "policy", files, dict(module.full_weights()), export_dtype)
    progress.closing(callback.initial, callback.final, str(run.path))
    return "finished"


def _algorithm(config: Config, files: PolicyFiles, examples: Any) -> tuple[PolicyModule, Any, Any]:
    """(module, buffer or None, loader with one item a step)."""
    from torch.utils.data import DataLoader

    from mmsr1 import assembly
    from mmsr1.models.buffer import RolloutBuffer
    from mmsr1.models.grpo_module import Encoding, GRPOModule
    from mmsr1.models.policy import Policy
    from mmsr1.models.sft_module import SFTModule

    algorithm, steps, frozen = config.algorithm, config.trainer.max_steps, config.model.freeze_vision
    if config.model.activation_checkpointing:
        files.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(files.model, config.model.logprob_chunk)
    optim = assembly.optim_spec(algorithm, steps)
    if algorithm.kind == "sft":
        data: Any = assembly.WarmupData(config, files)
        buffer = None
        module: PolicyModule = SFTModule(policy, files.patches, optim, algorithm.token_budget, frozen)
    else:
        data = assembly.prompt_schedule(config, examples)
        buffer = RolloutBuffer()
        encoding = Encoding(
            files.patches, files.image_token, files.merge, frozenset(files.tokenizer.added_tokens_decoder)
        )
        module = GRPOModule(
            policy,
            buffer,
            encoding,
            assembly.loss_spec(algorithm),
            optim,
            algorithm.mini_batches,
            algorithm.token_budget,
            algorithm.gap_limit,
            frozen,
        )
    # One item is one step, already a batch. Workers are spawned: this process has threads, which a fork would lose.
    workers = config.trainer.data_workers
    context = "spawn" if workers else None
    loader = DataLoader(data, batch_size=None, shuffle=False, num_workers=workers, multiprocessing_context=context)
    return module, buffer, loader


def _trainer(config: Config, run_path: Path, callback: RolloutCallback) -> Trainer:
    """One strategy on every machine; what it shards is up to `PolicyModule.configure_model`."""
    from lightning import Trainer
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.strategies import ModelParallelStrategy

    knobs, wandb = config.trainer, config.logger
    strategy = ModelParallelStrategy(
        data_parallel_size=knobs.devices * knobs.num_nodes,
        tensor_parallel_size=1,
        process_group_backend="gloo" if knobs.accelerator == "cpu" else "nccl",
        save_distributed_checkpoint=True,
    )
    logger = (
        WandbLogger(
            project=wandb.project,
            name=f"{config.name}-{config.seed}",
            save_dir=run_path,
            offline=wandb.mode == "offline",
        )
        if wandb.project
        else False
    )
    return Trainer(
        accelerator=knobs.accelerator,
        devices=knobs.devices,
        num_nodes=knobs.num_nodes,
        strategy=strategy,
        max_epochs=1,
        callbacks=[callback],
        logger=logger,
        default_root_dir=run_path,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _summary(run: RunDirectory, callback: RolloutCallback, counts: Any, skipped: int, seconds: float) -> None:
    run.write_summary(
        {
            "initial": callback.initial,
            "final": callback.final,
            "steps": callback.steps_done,
            "wall_seconds": seconds,
            "tool_calls": counts["calls"],
            "cache_hits": counts["hits"],
            "backend_calls": counts["backend_calls"],
            "cost_usd": callback.cost_usd,
            "cost_usd_uncached": callback.cost_usd_uncached,
            "skipped_rows": skipped,
        }
    )


def _report(run: RunDirectory) -> None:
    """A run that failed keeps its own error even if the report about it fails too."""
    from mmsr1.report.run import write_report

    try:
        write_report(run.path)
    except Exception as error:
        sys.stderr.write(f"no report: {type(error).__name__}: {error}; try python -m mmsr1.report.run {run.path}\n")


if __name__ == "__main__":
    run_command(main)
