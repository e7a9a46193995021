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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mmsr1.cli import remove_empty, restore_environment, run_command
from mmsr1.config import Config, ConfigError, check
from mmsr1.config.rollout import TRAINABLE

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

    from mmsr1.assembly.training import Start
    from mmsr1.models.loading import PolicyFiles
    from mmsr1.models.module import PolicyModule
    from mmsr1.rollout.callback import RolloutCallback
    from mmsr1.rollout.record import RunRecord
    from mmsr1.run_directory import RunDirectory


def main(config: Config, output: Path) -> None:
    """One training job. Several processes on this machine are started here, those of several machines from outside."""
    from mmsr1.environment import prepare_process
    from mmsr1.models.plan import settle
    from mmsr1.processes import is_first_process, started_count, started_from_outside

    remedy = f"only answers, and cannot be trained; give one of {', '.join(TRAINABLE)}"
    check(config.rollout.engine in TRAINABLE, "rollout.engine", config.rollout.engine, remedy)
    config = settle(config)
    wanted = config.trainer.devices * config.trainer.num_nodes
    if wanted > 1 and not started_from_outside():
        return _launch(config, output)
    if wanted > 1 and config.comes_after_another:
        from mmsr1.assembly.before import is_prepared

        remedy = "must have ended before several processes are started from outside: run it alone, then give its result"
        check(is_prepared(config, output), "first", config.first or "algorithm.source=teacher", remedy)
    remedy = "must be trainer.devices x trainer.num_nodes, which is the number of processes started"
    check(started_count() == wanted, "processes", started_count(), remedy)
    prepare_process(config.trainer.threads)
    from mmsr1.assembly.lead import lead
    from mmsr1.assembly.training import check_tools, resume_point
    from mmsr1.processes import interrupt_on_sigterm
    from mmsr1.run_directory import RunDirectory

    interrupt_on_sigterm()
    run, start = RunDirectory(output), resume_point(config, output)
    if is_first_process():
        lead(config, run, "train.py", lambda: train(config, run, start))
        return
    try:  # the first one writes, and says what is wrong; this one takes its share of the work
        check_tools(config, output)
        train(config, run, start)
    except ConfigError:
        sys.exit(2)
    finally:
        remove_empty(output)


def _launch(config: Config, output: Path) -> None:
    """This same command once for every device; they share the run directory that this process was given."""
    from mmsr1.processes import launch
    from mmsr1.run_directory import RunDirectory

    nodes = config.trainer.num_nodes
    check(nodes == 1, "trainer.num_nodes", nodes, "start one process a device on every node: docs/scale.md")
    if config.resume:  # a mistake is told once, before anything is started
        from mmsr1.assembly.training import resume_point

        resume_point(config, output)
    if config.tools.asks_the_web:
        from mmsr1.assembly.tools import check_tools

        check_tools(config, output)
    if config.comes_after_another:
        from mmsr1.assembly.before import prepared
        from mmsr1.processes import interrupt_on_sigterm

        interrupt_on_sigterm()
        prepared(config, output)
    restore_environment()
    again = [argument for argument in sys.argv if not argument.startswith("hydra.run.dir=")]
    status, cause = launch(config.trainer.devices, [*again, f'hydra.run.dir="{output}"'])
    record = RunDirectory(output).read_run()
    if cause and record and status != 2:  # 2 is a user's mistake, which the first process has told
        RunDirectory(output).finish("failed", 0.0, cause)
        sys.stderr.write(f"{cause}, the others were stopped; go on with python train.py resume={output}\n")
    sys.exit(status)


def train(config: Config, run: RunDirectory, start: Start) -> tuple[str, str | None]:
    """The skeleton: data, policy, tools, engine, module, trainer; then the summary. Returns the final status, and which
    budget was spent, if that ended the run or its last step."""
    import torch
    from lightning import seed_everything

    from mmsr1.assembly import training as assembly
    from mmsr1.assembly.before import prepared
    from mmsr1.assembly.run import price_remarks
    from mmsr1.data.traces.folder import TraceError
    from mmsr1.models.checkpoint import CheckpointError, check_model
    from mmsr1.processes import is_first_process
    from mmsr1.report.progress import RunProgress
    from mmsr1.report.searches import tool_table
    from mmsr1.tools.base import EndOfRun

    started, first = time.perf_counter(), is_first_process()
    config = prepared(config, run.path)
    seed_everything(config.seed, verbose=False)
    torch.set_num_threads(config.trainer.threads)
    with RunProgress(config.trainer.max_steps, shown=first) as progress, TemporaryDirectory() as scratch:
        progress.say(f"run directory: {run.path}" + (f", from step {start.done}" if config.resume else ""))
        progress.begin("data", 1)
        examples, validation, skipped = assembly.training_examples(config, progress)
        remarks = (*assembly.remarks(config, examples), *price_remarks(config))
        for line in (*assembly.skipped_rows(skipped), *remarks):
            progress.say(line)
        files = assembly.policy_files(config)
        weights = assembly.starting_weights(config, files, Path(scratch))
        record = assembly.run_record(config, run, progress)

        if start.checkpoint is not None and start.done == config.trainer.max_steps:
            if first:  # killed between its last checkpoint and its end
                assembly.complete(config, run, files, record, start.checkpoint)
            return "finished", None
        module, buffer, prompts, data = _algorithm(config, files, examples, start.done)
        callback = assembly.rollout_callback(
            config,
            lambda path, rank: assembly.rollout_worker(config, files, weights, path, rank),
            buffer,
            prompts,
            validation,
            record,
            start.checkpoint,
        )
        trainer = _trainer(config, run.path, callback)
        try:
            if start.checkpoint is not None:  # before anything slow is started
                check_model(start.checkpoint, module.policy)
            trainer.fit(module, data)
            if first and not _cut_short(config, record):
                export_dtype = getattr(torch, config.model.export_dtype)
                assembly.save_policy(run.path / "policy", files, callback.weights, export_dtype)
        except (CheckpointError, EndOfRun, TraceError) as error:
            raise ConfigError(str(error)) from error
        except SystemExit:  # how Lightning leaves after Ctrl-C
            return "interrupted", None
        finally:
            if first:
                run.write_summary(assembly.summary(record, len(skipped), time.perf_counter() - started))
    progress.searches(tool_table(record.tools))
    if _cut_short(config, record):
        return "interrupted", record.stopped
    if record.stopped is not None:
        last = "" if record.validated == record.steps_done else "; its last step is not validated"
        progress.say(f"{record.stopped}; the run had done all its steps{last}")
    behind = record.validated if record.validated != record.steps_done else None
    progress.closing(record.initial, record.final, str(run.path), behind)
    return "finished", record.stopped


def _cut_short(config: Config, record: RunRecord) -> bool:
    """Whether money ran out before the last step was done; where it did so in that step, the run is whole."""
    return record.stopped is not None and record.steps_done < config.trainer.max_steps


def _algorithm(config: Config, files: PolicyFiles, examples: Any, done: int) -> tuple[PolicyModule, Any, Any, Any]:
    """(module, buffer or None, prompts of a step, loader with one item a step, the first `done` left out)."""
    from torch.utils.data import DataLoader

    from mmsr1.assembly import training as assembly
    from mmsr1.models.buffer import RolloutBuffer
    from mmsr1.models.grpo_module import Encoding, GRPOModule
    from mmsr1.models.policy import Policy
    from mmsr1.models.sft_module import SFTModule

    algorithm, steps, frozen = config.algorithm, config.trainer.max_steps, config.model.freeze_vision
    if config.model.activation_checkpointing:
        files.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(files.model, config.model.logprob_chunk)
    optim, sharding = assembly.optim_spec(algorithm, steps, config.trainer), assembly.sharding(config)
    if algorithm.kind == "sft":
        make = assembly.WarmupData if algorithm.source == "warmup" else assembly.TraceData
        data: Any = make(config, files)
        buffer, prompts = None, lambda step: ()
        module: PolicyModule = SFTModule(policy, files.patches, optim, algorithm.token_budget, frozen, sharding)
    else:
        data = assembly.prompt_schedule(config, examples)
        buffer, prompts = RolloutBuffer(), data.prompts
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
            sharding,
            assembly.correction_spec(config),
            assembly.max_staleness(config),
            algorithm.all_equal == "keep",
        )
    # One item is one step, already a batch. Workers are spawned: this process has threads, which a fork would lose.
    workers = config.trainer.data_workers
    context = "spawn" if workers else None
    left = range(done, steps)
    loader = DataLoader(data, batch_size=None, sampler=left, num_workers=workers, multiprocessing_context=context)
    return module, buffer, prompts, loader


def _trainer(config: Config, run_path: Path, callback: RolloutCallback) -> Trainer:
    """One strategy on every machine; what it shards is up to `PolicyModule.configure_model`."""
    from lightning import Trainer
    from lightning.pytorch.callbacks import LambdaCallback
    from lightning.pytorch.strategies import ModelParallelStrategy

    from mmsr1.assembly.logging import wandb_logger
    from mmsr1.processes import interrupt_on_sigterm

    class Offloaded(ModelParallelStrategy):
        def model_to_device(self) -> None:
            """FSDP2 has put everything where it belongs; Lightning would move the offloaded shards to the GPU."""

    knobs = config.trainer
    strategy = (Offloaded if knobs.offload else ModelParallelStrategy)(
        data_parallel_size=knobs.devices * knobs.num_nodes,
        tensor_parallel_size=1,
        # On GPUs gloo takes what is in CPU memory: objects, and all gradients with trainer.offload.
        process_group_backend="gloo" if knobs.accelerator == "cpu" else "cpu:gloo,cuda:nccl",
        save_distributed_checkpoint=True,
    )
    return Trainer(
        accelerator=knobs.accelerator,
        devices=knobs.devices,
        num_nodes=knobs.num_nodes,
        strategy=strategy,
        max_epochs=1,
        # Lightning's own handler waits for a broadcast, which never comes when a process is lost.
        callbacks=[LambdaCallback(on_train_start=lambda *_: interrupt_on_sigterm()), callback],
        plugins=[_environment()],
        logger=wandb_logger(config, run_path) or False,
        default_root_dir=run_path,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _environment() -> ClusterEnvironment:
    """Who started the processes. Lightning's own guess takes any shell inside a SLURM allocation for srun."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from mmsr1.processes import started_by

    if started_by() == "srun":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if started_by() == "torchrun" else LightningEnvironment()


if __name__ == "__main__":
    run_command(main)
