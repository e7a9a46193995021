"""The report of a study: its page, figures, Markdown and files of numbers, from what `read_study` found."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr1.evaluation.counterfactual import Price
from mmsr1.files import write_whole
from mmsr1.report.boundary import Boundary, asked_of, boundary
from mmsr1.report.outcomes import OKABE_ITO
from mmsr1.report.page import environment, style
from mmsr1.report.study import endings, figures, tables
from mmsr1.report.study.compared import alike, commits, differing, mixed, reference_of, tests
from mmsr1.report.study.runs import Arm, Study
from mmsr1.report.study.tables import Table

_MODES = ("per_question", "per_call")
# Validation charges no price, and always the full penalty.
_IN_TRAINING = ("rewards.target_calls", "rewards.price_proportional", "rewards.price_integral")
_IN_TRAINING += ("rewards.penalty_warmup_steps",)
_CONFIGURATION = (
    "Keys that differ between the arms; seeds, names, folders and what decides no figure are left out. config.yaml "
    "has all keys of one run, the first of the arm that others are held against."
)
_COST = (
    "Sums over the runs that are whole. The time of a process that was killed outright is not known, and not in them."
)


@dataclass(frozen=True)
class Section:
    """`drawn` is the figure as PNG and SVG, `name` that of its files; `notes` are sentences below it and the table."""

    title: str
    name: str
    notes: tuple[str, ...]
    drawn: Mapping[str, bytes] | None = None
    table: Table | None = None


def write_study(study: Study, out: Path, reference: str | None = None, beside: Study | None = None) -> Path:
    """Write all of it into the folder `out`; the path of the page. The arms of another study, `beside`, are drawn in
    its accuracy against calls.

    Raises ValueError for a `reference` that is no arm of the study, OSError where `out` cannot be written.
    """
    held_against = reference_of(study, reference)
    sections = sections_of(study, held_against, beside)
    told = _told(study)
    for section in sections:
        for kind, data in (section.drawn or {}).items():
            write_whole(out / "figures" / f"{section.name}.{kind}", data)
    write_whole(out / "results.csv", tables.results_csv(study))
    write_whole(out / "dynamics.csv", tables.dynamics_csv(study))
    if held_against is not None:
        write_whole(out / "config.yaml", (held_against.runs[0].folder / "config.yaml").read_bytes())
    write_whole(out / "results.md", _markdown(study, told, sections).encode("utf-8", "replace"))
    page = environment().get_template("study.html.j2").render(
        name=study.name,
        told=told,
        complete=not study.gaps,
        gaps=tables.gaps(study.gaps) if study.gaps else None,
        sections=[(section, _image(section.drawn)) for section in sections],
        colours=OKABE_ITO,
        style=style("report.css", "study.css"),
    )  # fmt: skip
    write_whole(out / "report.html", page.encode("utf-8", "replace"))
    return out / "report.html"


def _told(study: Study) -> list[str]:
    """What the report is about, and how much of it is there."""
    jobs = len(study.runs) + len(study.gaps)
    said = [f"{len(study.runs)} of {jobs} runs are whole, in {len(study.arms)} of {len(study.order)} arms."]
    if study.gaps:
        said.append(
            f"Not whole, and in no figure: {len(study.gaps)}, listed below; "
            f"{_command(study.folder, '--missing')} prints the commands that fill the gaps."
        )
    if not study.planned:
        said.append("There is no plan.jsonl that says what was planned: runs that never began are not missed.")
    if study.beside:
        said.append(f"Runs that are in no plan (plan.jsonl): {study.beside}; they count.")
    if study.runs:
        made = "; ".join(f"{commit} ({count} runs)" for commit, count in commits(study).items())
        said.append(f"Made at commit {made}.")
    return said + mixed(study) + alike(study)


def _command(*arguments: object) -> str:
    return shlex.join(["python", "-m", "mmsr1.report.study", *map(str, arguments)])


def sections_of(study: Study, reference: Arm | None, beside: Study | None = None) -> list[Section]:
    """Empty if no run counts."""
    if reference is None:
        return []
    arms, marks = study.arms, figures.marks_of(study.arms)
    return [
        _dynamics(study, marks),
        _final(study, marks),
        Section(
            "Behaviour", "behaviour", ("Right and wrong answers, with and without a search: means over the seeds.",),
            figures.pictures(endings.draw_behaviour(arms)), tables.final(arms, tables.BEHAVIOUR),
        ),
        _frontier(study, marks, beside),
        _tests(study, reference),
        *_boundary(study, marks),
        Section("Configuration", "configuration", (_CONFIGURATION,), None, tables.differing(study)),
        Section("Cost and time", "cost", (_COST,), None, tables.spent(arms)),
    ]  # fmt: skip


def _dynamics(study: Study, marks: figures.Marks) -> Section:
    arms = study.arms
    curves = [figures.dynamics_of(arm.runs, key) for arm in arms for key, *_ in figures.DYNAMICS]
    widths = sorted({figures.window(len(steps)) for steps, _, training in curves if training and len(steps)})
    notes = ["Training batches: the mean over the seeds, in a band from the lowest to the highest of them."]
    if widths and widths[-1] > 1:
        counts = " or ".join(map(str, (width for width in widths if width > 1)))
        told = f"each point is the mean of the {counts} steps around it, the first and the last of fewer"
        notes.append(f"Curves are smoothed: {told}.")
    if any(not training and len(steps) for steps, _, training in curves):
        notes.append("Hollow markers: validations, of an arm whose training has no such figure.")
    if any(key.startswith("data.") for key, _ in differing(study)):
        notes.append("The arms train on different questions: only validations, in the next section, ask all the same.")
    kinds = {str(run.config.get("algorithm.kind", "grpo")) for arm in arms for run in arm.runs}
    if len(kinds) > 1:
        notes.append("A step of GRPO is one of rollouts, a step of SFT a batch of demonstrations.")
    if any(run.config.get("first") for arm in arms for run in arm.runs):
        notes.append("Of an arm that starts from a run of its own (first), the steps after it are shown.")
    if any(run.config.get("rewards.target_calls") is not None for arm in arms for run in arm.runs):
        notes.append("The reward in training is what is left after the price of the calls; validation charges none.")
    return Section("Training", "dynamics", tuple(notes), figures.pictures(figures.draw_dynamics(arms, marks)))


def _final(study: Study, marks: figures.Marks) -> Section:
    arms = study.arms
    notes = [
        "The last validation: means over the seeds with 95 % intervals over them (Student's t, one degree of freedom "
        "less than there are seeds), which cover how training varies, on these questions. Ticks are the seeds; where "
        "they agree to the last answer the interval has no length."
    ]
    if any(len(arm.runs) == 1 for arm in arms):
        notes.append(
            "Of an arm with one run the interval is that run's own, clustered by image: it covers the choice of "
            "questions, and says nothing of how training varies."
        )
    notes += _own_rewards(study)
    drawn = figures.pictures(endings.draw_final(arms, marks))
    return Section("At the end of training", "final", tuple(notes), drawn, tables.final(arms))


def _frontier(study: Study, marks: figures.Marks, beside: Study | None) -> Section:
    notes = [
        "Faint: every seed. Filled, and joined by the dashed line: no other arm is at least as accurate for at most "
        "the calls. Bars are the intervals of the table above; one that leaves the picture is longer than shown."
    ]
    notes += [one for one in _own_rewards(study) if "accuracy" in one]
    others = () if beside is None else beside.arms
    if beside is not None and others:
        notes.append(f"Grey: the arms of {beside.name}, with the same intervals; the line does not heed them.")
        if asked_in(study) != asked_in(beside):
            notes.append("The two studies were validated on different questions: their points cannot be compared.")
    elif beside is not None:
        notes.append(f"{beside.name}: no run counts, and nothing of it is drawn.")
    drawn = figures.pictures(endings.draw_frontier(study.arms, marks, others))
    return Section("Accuracy against calls", "frontier", tuple(notes), drawn)


def asked_in(study: Study) -> frozenset[str]:
    """The questions of its validations, by their ids."""
    return frozenset(one.id for run in study.runs for one in run.outcomes)


def _tests(study: Study, reference: Arm) -> Section:
    found, remarks = tests(study, reference)
    notes = (
        f"Every arm less {reference.name}, over the seeds that both have. p is of sign flips of whole images over all "
        "pairs of seed and question (a question of several seeds is one): it covers the choice of questions, for the "
        "policies that were trained. The interval is over the differences of the seeds: it covers how training "
        "varies, on these questions, and has no length where all differ by the same. Holm's p is for all tests shown.",
        *_own_rewards(study),
        *remarks,
    )
    return Section("Paired tests", "tests", notes, None, tables.tests(found))


def _own_rewards(study: Study) -> list[str]:
    keys = [key for key, _ in differing(study) if key.startswith("rewards.") and key not in _IN_TRAINING]
    if not keys:
        return []
    scored = "reward and accuracy" if "rewards.match" in keys else "reward"
    return [f"Each arm is scored by its own rewards ({', '.join(keys)} differ): a difference in {scored} is that too."]


# ---- the boundary


def _boundary(study: Study, marks: figures.Marks) -> list[Section]:
    found, remarks = boundaries(study.arms)
    if not found:
        return [Section("The learned boundary", "boundary", tuple(remarks))] if remarks else []
    notes = (
        "How often a question is searched for, against the policy's own chance p of answering it right directly "
        f"({_slice(study)}). p is known from a few forced direct answers: points stand at the mean of p that these "
        "leave open, and the curve is a logistic one fitted through that uncertainty, drawn over the middle 90 % of "
        "the questions. Its band and the intervals resample places; those of several seeds reach at least as far as "
        "Student's t over the seeds' own estimates. A point averages over questions of different p, so that a steep "
        "curve may pass beside it.",
        "The predicted switch is where p equals what searching is worth there: the accuracy with the best search "
        "(chosen on one half of the rollouts, judged on the other) after its price, by a line in p. "
        ">= 1: searches more often than not at any p; <= 0: at none.",
        *remarks,
    )
    drawn = figures.pictures(figures.draw_boundary(found, marks))
    return [Section("The learned boundary", "boundary", notes, drawn, tables.boundary(found))]


def _slice(study: Study) -> str:
    asked = {
        str(run.config.get("trainer.counterfactual_split")) if run.config.get("data.kind") == "emblem" else "validation"
        for run in study.runs
        if run.branches
    }
    return f"questions of the {' and '.join(sorted(asked))} split"


def boundaries(arms: Sequence[Arm]) -> tuple[dict[str, Boundary], list[str]]:
    """Of every arm with forced ways, in the order of their penalties; and of which arms they could not be read."""
    found: dict[str, Boundary] = {}
    remarks = []
    for arm in sorted(arms, key=_penalty):
        lines = [run.branches for run in arm.runs if run.branches]
        if not lines:
            continue
        try:
            found[arm.name] = boundary(asked_of(lines, price_of(arm)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remarks.append(f"{arm.name}: its forced ways cannot be read ({type(error).__name__}: {error})")
    return found, remarks


def _penalty(arm: Arm) -> float:
    value = arm.runs[0].config.get("rewards.search_penalty")
    return float(value) if isinstance(value, int | float) else 0.0


def price_of(arm: Arm) -> Price | None:
    """What its reward charged for a search at the end; None where seeds differ, or the price is not the penalty's
    alone."""
    config = arm.runs[0].config
    keys = ("rewards.search_penalty", "rewards.penalty_mode", "rewards.target_calls", "algorithm.efficiency_weight")
    if any(run.config.get(key) != config.get(key) for run in arm.runs for key in keys):
        return None
    penalty, mode, target, efficiency = (config.get(key) for key in keys)
    fixed = isinstance(penalty, int | float) and mode in _MODES and target is None and not efficiency
    # Demonstrations are copied, whatever a search costs.
    trained = config.get("algorithm.kind", "grpo") == "grpo"
    return Price(float(penalty), mode) if fixed and trained else None  # type: ignore[arg-type]


# ---- shown


def _image(drawn: Mapping[str, bytes] | None) -> str | None:
    return "data:image/svg+xml;base64," + base64.b64encode(drawn["svg"]).decode() if drawn else None


def _markdown(study: Study, told: Sequence[str], sections: Sequence[Section]) -> str:
    parts: list[Any] = [f"# {tables.plain(study.name)}\n", "\n".join(map(tables.paragraph, told)) + "\n"]
    if study.gaps:
        parts += ["## Gaps\n", tables.markdown(tables.gaps(study.gaps))]
    for section in sections:
        parts.append(f"## {section.title}\n")
        if section.drawn:
            parts.append(f"![{section.title}](figures/{section.name}.png)\n")
        if section.table and section.table.rows:
            parts.append(tables.markdown(section.table))
        parts.append("\n".join(map(tables.paragraph, section.notes)) + "\n")
    return "\n".join(parts)
