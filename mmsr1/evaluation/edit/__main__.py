"""Teach a policy a few facts that it did not know, and see what it searches for afterwards.

    python -m mmsr1.evaluation.edit policy=outputs/grpo_balanced/<run>
    python -m mmsr1.evaluation.edit policy=start edit.facts=10 algorithm.batch_size=60

Overrides are those of conf/edit.yaml; --cfg job prints all of them. resume=DIR goes on with an edit that was ended.
Exit status 2 for a mistake. docs/knowledge-edit.md says what is taught and asked.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mmsr1 import cli
from mmsr1.assembly.chosen import with_policy
from mmsr1.cli import configured_command, refuse, remove_empty
from mmsr1.config import check
from mmsr1.config.edit import EditConfig, register
from mmsr1.mistakes import USER_ERRORS, explain

if TYPE_CHECKING:
    from mmsr1.run_directory import RunDirectory

PROGRAM = "-m mmsr1.evaluation.edit"


def composed(overrides: list[str]) -> Any:
    """The raw configuration; with `resume=DIR` that of the folder. Raises `USER_ERRORS`."""
    register()
    named = [override.removeprefix("resume=") for override in overrides if override.startswith("resume=")]
    if not named:
        return cli.composed(overrides, "edit")
    folder = Path(named[-1])
    check((folder / "config.yaml").is_file(), "resume", folder, "no edit there; give the folder of one")
    return cli.resumed(folder, overrides, EditConfig)


def checked(raw: Any) -> EditConfig:
    """The typed configuration with the policy that it names. Raises ConfigError."""
    config: Any = OmegaConf.to_object(raw)
    cli.check_keys(config)
    return with_policy(config)


def main(arguments: list[str]) -> int:
    """Edit; the exit status."""
    asked = configured_command(arguments, f"python {PROGRAM}", __doc__, "policy=RUN edit.facts=10")
    try:
        raw = composed(asked.overrides)
        if asked.cfg:
            sys.stdout.write(OmegaConf.to_yaml(raw))
            return 0
        led(checked(raw))
        return 0
    except USER_ERRORS as error:
        refuse(explain(error))
    except KeyboardInterrupt:
        return 130


def led(config: EditConfig) -> None:
    """The edit of the configuration, into its folder."""
    from mmsr1.environment import prepare_process

    prepare_process(config.trainer.threads)
    from mmsr1.assembly.answering import settle_resumed
    from mmsr1.assembly.lead import lead
    from mmsr1.processes import interrupt_on_sigterm
    from mmsr1.run_directory import RunDirectory

    interrupt_on_sigterm()
    run = RunDirectory(Path(config.resume or config.out))
    settle_resumed(config, run.path)
    remedy = "an edit is there; name another folder, or go on with it: resume=DIR"
    check(config.resume is not None or not run.read_run(), "out", config.out, remedy)
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        lead(config, run, PROGRAM, lambda: edit(config, run))
    finally:
        remove_empty(run.path)


def edit(config: EditConfig, run: RunDirectory) -> tuple[str, str | None]:
    """The skeleton: ask, rehearse, teach, ask again; then the summary. Returns the final status, and which budget was
    spent, if that ended it."""
    import torch
    from lightning import seed_everything
    from rich.console import Console

    from mmsr1.assembly import edit as assembly
    from mmsr1.assembly.answering import answering
    from mmsr1.evaluation.edit.figures import changes, grouped, table
    from mmsr1.models.loading import save_policy

    started, console = time.perf_counter(), Console(stderr=True)
    seed_everything(config.seed, verbose=False)
    world, facts, questions = assembly.facts_and_questions(config)
    run.drop_after(0)  # of a process that was ended what it asked before teaching stays, the rest is done anew
    with answering(config, run.path) as policy:
        examining = assembly.Examining(config, run, policy)
        before = examining.outcomes(questions, "before", 0)
        own = examining.own_conversations(world)
        if stopped := policy.spent():
            return "interrupted", stopped
        files, module = assembly.teach(config, run, world, facts, own)
        policy.worker.load_weights(module.full_weights(), 1)
        after = examining.outcomes(questions, "after", config.edit.steps)
        if stopped := policy.spent():
            return "interrupted", stopped
    save_policy(run.path / "policy", files, None, getattr(torch, config.model.export_dtype))
    allowed = config.rollout.turns - 1
    summary = {
        "policy": config.policy,
        "facts": [{"place": fact.place.id, "attribute": fact.attribute, "value": fact.value} for fact in facts],
        "steps": config.edit.steps,
        "rehearsed": len(own),
        "before": grouped(before, allowed),
        "after": grouped(after, allowed),
        "change": changes(before, after, config.seed),
        "lost": sum(one.lost for one in (*before, *after)),
        "wall_seconds": time.perf_counter() - started,
    }
    run.write_summary(summary)
    console.print(table(summary))
    if lost := summary["lost"]:
        console.print(f"{lost} episodes were lost to failures of engine or tools, and do not count", highlight=False)
    said = f"edit: {run.path}\nfigures: {run.path}/summary.json\nedited policy: {run.path}/policy"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return "finished", None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
