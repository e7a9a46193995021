"""Evaluate a policy: does it answer right, and does it search only when it must?

    python evaluate.py policy=outputs/grpo_balanced/<run> counterfactual=4
    python evaluate.py -m policy=start,outputs/grpo_balanced/<run> workflow=direct,rag,on_demand
    python evaluate.py policy=openai rollout.api.url=... rollout.api.options.model=NAME benchmark=infoseek \\
        benchmark.path=...

questions -> episodes (the loop and the tools of training) -> rewards, the benchmark's own metric, a judge -> scorecard.
A workflow says what the turns must do, if anything. Each episode is a line on disk as soon as it is judged, so that
`resume=<evaluation>` goes on after a kill, an outage or with more money.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr1.cli import run_command
from mmsr1.config import evaluate as schema

if TYPE_CHECKING:
    from mmsr1.config.evaluate import EvaluateConfig
    from mmsr1.run_directory import RunDirectory


def main(config: EvaluateConfig, output: Path) -> None:
    """One evaluation, into its run directory."""
    from mmsr1.environment import prepare_process

    prepare_process(config.trainer.threads)

    from mmsr1.assembly.answering import settle_resumed
    from mmsr1.assembly.lead import lead
    from mmsr1.processes import interrupt_on_sigterm
    from mmsr1.run_directory import RunDirectory

    interrupt_on_sigterm()
    run = RunDirectory(output)
    settle_resumed(config, run.path)
    lead(config, run, "evaluate.py", lambda: evaluate(config, run))


def evaluate(config: EvaluateConfig, run: RunDirectory) -> tuple[str, str | None]:
    """The skeleton: questions, policy, answers, branches; then the summary. Returns the final status, and which budget
    was spent, if that ended it."""
    from mmsr1.assembly import evaluation as assembly
    from mmsr1.assembly.answering import answering
    from mmsr1.assembly.benchmarks import asked
    from mmsr1.assembly.chosen import with_policy, with_prompts
    from mmsr1.assembly.logging import numbers, wandb_logger
    from mmsr1.assembly.rollout import reward_spec
    from mmsr1.evaluation.lines import Lines
    from mmsr1.evaluation.marking import Marking
    from mmsr1.report.evaluation import show
    from mmsr1.rollout.record import TRAJECTORY

    started = time.perf_counter()
    config = with_prompts(with_policy(config))
    questions = asked(config)
    for line in (*questions.remarks, *assembly.remarks(config, questions)):
        sys.stderr.write(f"{line}\n")
    labels = assembly.human_labels(config)
    with answering(config, run.path, config.concurrent) as policy:
        marking = Marking(reward_spec(config), questions.metric, assembly.judge(config, policy))
        evaluating = assembly.Evaluating(config, questions, policy, marking, Lines(run, questions.contents), labels)
        before = run.read_summary()
        seconds: dict[str, float] = {}
        try:
            begun = time.perf_counter()
            evaluating.judge_again()
            evaluating.answers()
            seconds["seconds_answering"] = time.perf_counter() - begun
            if config.counterfactual:
                evaluating.branches()
            stopped = policy.spent()
        finally:  # what was answered until a kill is summed up too
            summary = evaluating.summary(before, seconds | {"wall_seconds": time.perf_counter() - started})
            run.write_summary(summary)
    if (logger := wandb_logger(config, run.path)) is not None:
        logger.log_metrics(numbers(summary["final"], "final") | numbers(summary["counterfactual"], "counterfactual"))
        logger.log_table("trajectories", columns=list(TRAJECTORY), data=evaluating.trajectories())
        logger.finalize("success")
    show(summary, run.path)
    if useless := assembly.nothing_counts(summary, policy):
        return "failed", useless
    return ("interrupted" if stopped else "finished"), stopped


def table(folder: Path) -> None:
    """After several evaluations: one table of them beside the published figures."""
    from mmsr1.evaluation.table import write_table

    sys.stdout.write(f"table: {write_table(folder)}\n")


if __name__ == "__main__":
    from mmsr1.assembly.chosen import with_engine

    schema.register()
    sys.argv = with_engine(sys.argv)
    run_command(main, "evaluate", schema.EvaluateConfig, after_sweep=table)
