"""Issue B: train exactly what was sampled, on any number of processes, and lose nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acceptance.learning import comparable
from acceptance.lines import (
    OUTPUT,
    ROOT,
    Check,
    Line,
    at_least,
    at_most,
    command,
    free_port,
    holds,
    metrics,
    summary,
    training_run,
)

DEFAULT = "+experiment=grpo_balanced"
SHORT = (DEFAULT, "trainer.max_steps=6", "trainer.val_every=3", "trainer.checkpoint_every=2", "data.val_size=60")
# Places where a run is killed, with the range of how often it has been there by then.
KILLS = (
    ("rollout", 100, 1500),
    ("rollout", 100, 1500),
    ("tool", 5, 60),
    ("tool", 5, 60),
    ("cache_write", 5, 60),
    ("optimizer", 1, 12),
    ("optimizer", 1, 12),
    ("sync", 2, 7),
    ("checkpoint_begin", 1, 3),
    ("checkpoint_end", 2, 9),
    ("prune", 1, 3),
    ("metrics", 1, 6),
)


def rigged(**rig: Any) -> dict[str, str]:
    """The environment that puts a fault or a recording into a command (see acceptance/rig)."""
    return {"PYTHONPATH": str(ROOT / "acceptance" / "rig"), "MMSR1_RIG": json.dumps(rig)}


def same_gradient() -> list[Check]:
    """Line 1, first half: recorded episodes, trained on by one process, two, and two nodes of one."""
    folder = OUTPUT / "recorded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    three = (DEFAULT, "trainer.max_steps=3", "trainer.val_every=3", "data.val_size=60")
    training_run("recorded_once", *three, env=rigged(record=str(folder)))
    replay = rigged(replay=str(folder))
    one = training_run("ranks_1", *three, env=replay)
    two = training_run("ranks_2", *three, "trainer.devices=2", env=replay)
    nodes = two_nodes("ranks_2x1", *three, env=replay)
    checks = []
    for name, run in (("2 processes", two), ("2 nodes", nodes)):
        for figure in ("loss", "grad_norm"):
            pairs = zip(_train_rows(one), _train_rows(run), strict=True)
            difference = max(abs(a[figure] - b[figure]) for a, b in pairs)
            checks.append(at_most("1", f"{name}: largest difference of {figure}, 3 steps", difference, 1e-4))
    tests, _ = command(sys.executable, "-m", "pytest", "-q", "tests/models/test_sharding.py", check=False)
    passed = not tests.returncode and " passed" in tests.stdout
    return [*checks, holds("1", "a rank without groups, a micro-batch without images (tests)", passed)]


def gates() -> list[Check]:
    """Line 1, second half: whole runs meet the gate."""
    runs = {
        "1 process": training_run("gate_1", DEFAULT),
        "2 processes": training_run("gate_2", DEFAULT, "trainer.devices=2"),
        "2 nodes": two_nodes("gate_2x1", DEFAULT),
    }
    checks = []
    for name, run in runs.items():
        accuracy, searches = (summary(run)["final"][key] for key in ("accuracy", "search_ratio_free"))
        checks.append(at_least("1", f"{name}: accuracy", accuracy, 0.89))
        checks.append(at_most("1", f"{name}: search_ratio_free", searches, 0.20))
    return checks


def two_nodes(name: str, *overrides: str, env: dict[str, str] | None = None) -> Path:
    """The same run as two nodes of one process each, on the loopback interface, started by torchrun as a user would."""
    target = OUTPUT / name
    shutil.rmtree(target, ignore_errors=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    job = ["train.py", *overrides, "trainer.num_nodes=2", f"hydra.run.dir={target}"]
    nodes = [
        subprocess.Popen(
            [*launcher, f"--node-rank={rank}", *job],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [node.communicate()[1] for node in nodes]
    if any(node.returncode for node in nodes):
        raise RuntimeError(f"two nodes ended with {[node.returncode for node in nodes]}: {''.join(errors)[-2000:]}")
    return target


def packing() -> list[Check]:
    """Line 2."""
    env = {"MMSR1_EPISODES": "200"}
    tests, seconds = command(
        sys.executable, "-m", "pytest", "-q", "tests/models/test_packed_equivalence.py", env=env, check=False
    )
    passed = not tests.returncode and " passed" in tests.stdout
    return [holds("2", "packed against one by one, 200 episodes", passed, f"{passed}, {seconds:.0f} s")]


def loss_memory() -> list[Check]:
    """Line 3."""
    figures = _benchmark("loss_memory")
    trl = figures["trl_mib"]
    return [
        at_most("3", "peak of the loss (MiB)", figures["ours_mib"], 450),
        holds("3", "TRL beside it (MiB), where installed", True, "not installed" if trl is None else f"{trl:.0f}"),
    ]


def packing_speed() -> list[Check]:
    """Line 4."""
    figures = _benchmark("packing")
    return [
        at_least("4", "trained tokens a second, packed over padded", figures["packed_over_padded"], 2),
        at_least("4", "vision compute saved, 8 rollouts of an image", figures["vision_saved"], 0.8),
    ]


def kills() -> list[Check]:
    """Line 5: killed anywhere, a resumed run is the uninterrupted one."""
    rng = random.Random(0)
    exact = (*SHORT, "rollout.deterministic=true")
    whole = _fresh_run("whole", *exact)
    checks = []
    for number, (place, low, high) in enumerate(KILLS):
        count = rng.randint(low, high)
        run, killed, repeated = _killed_and_resumed(f"kill_{number}", place, count, *exact)
        same = killed and _same(run, whole)
        what = f"{place}, time {count}: weights, metrics, consumed examples as uninterrupted"
        checks.append(holds("5", what, same, "yes" if same else "not killed" if not killed else "no"))
        checks.append(at_most("5", f"{place}, time {count}: answered calls repeated", repeated, 0))
    usual = _fresh_run("whole_default", *SHORT)
    for place, count in (("rollout", 700), ("tool", 30)):
        run, killed, repeated = _killed_and_resumed(f"kill_default_{place}", place, count, *SHORT)
        same = killed and _lines(run, "consumed.jsonl") == _lines(usual, "consumed.jsonl")
        checks.append(holds("5", f"default mode, {place}: consumed examples as uninterrupted", same))
        checks.append(at_most("5", f"default mode, {place}: answered calls repeated", repeated, 0))
    return checks


def lost_rank() -> list[Check]:
    """Line 6: one of two ranks is killed; and checkpoints that cannot be used."""
    target = OUTPUT / "lost_rank"
    shutil.rmtree(target, ignore_errors=True)
    env = {**os.environ, **rigged(kill={"at": "optimizer", "count": 7, "rank": 1})}
    job = [sys.executable, "train.py", *SHORT, "trainer.devices=2", f"hydra.run.dir={target}"]
    process = subprocess.Popen(job, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors, lost = [], None
    for line in process.stderr or ():
        errors.append(line)
        if lost is None and len(_train_rows(target)) >= 3:  # rank 1 dies in the fourth step
            lost = time.monotonic()
    process.wait()
    seconds = time.monotonic() - (lost or 0.0)
    said = [line.strip() for line in errors if "SIGKILL" in line and "go on with" in line]
    status = json.loads((target / "run.json").read_text())["status"]
    again, _ = command(sys.executable, "train.py", f"resume={target}", "trainer.devices=1", check=False)
    return [
        at_most("6", "seconds until all have ended", seconds, 60),
        holds("6", "message", bool(said), said[-1][-110:] if said else "none"),
        holds("6", "run.json says that it did not finish", status in ("failed", "interrupted"), status),
        holds("6", "resumed on one rank", not again.returncode and len(_train_rows(target)) == 6),
        *_refusals(target),
    ]


def _refusals(run: Path) -> list[Check]:
    newest = sorted((run / "checkpoints").glob("[0-9]*"))[-1]
    state = json.loads((newest / "state.json").read_text())
    shard = next((newest / "weights").glob("*.distcp"))
    content = shard.read_bytes()

    def refused(what: str, *overrides: str) -> Check:
        result, _ = command(sys.executable, "train.py", f"resume={run}", *overrides, check=False)
        told = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        one_line = len(told) == 1 and "Traceback" not in result.stderr
        return holds("6", what, result.returncode == 2 and one_line, " ".join(told)[-110:])

    more = "trainer.max_steps=8"
    shard.write_bytes(content[: len(content) // 2])
    checks = [refused("truncated checkpoint", more)]
    shard.write_bytes(content)
    (newest / "state.json").write_text(json.dumps({**state, "format": state["format"] + 1}))
    checks.append(refused("checkpoint of a newer version", more))
    (newest / "state.json").write_text(json.dumps(state))
    other = training_run("other_model", *SHORT, "trainer.max_steps=1", "model.lora_rank=4")
    shutil.copytree(other / "checkpoints" / "00000001", newest.with_name("00000007"))
    return [*checks, refused("checkpoint of another model", more)]


def variants() -> list[Check]:
    """Line 7: adapters and the frozen vision tower learn, and export what the trainer holds."""
    checks = []
    arms = {
        "LoRA": ("model.lora_rank=16", "algorithm.lr=2e-3"),
        "frozen vision tower": ("model.freeze_vision=true",),
    }
    for name, overrides in arms.items():
        run = training_run(f"variant_{name.split()[0].lower()}", DEFAULT, *overrides)
        first, last = (summary(run)[key] for key in ("initial", "final"))
        rewards = [f"{row['reward']:.3f}" for row in metrics(run, "val")]
        checks.append(holds("7", f"{name}: validation reward by validation", True, " ".join(rewards)))
        checks.append(at_least("7", f"{name}: gain in reward", last["reward"] - first["reward"], 0.05))
        checks.append(at_most("7", f"{name}: search_ratio_free", last["search_ratio_free"], 0.20))
        out = run.with_name(f"{run.name}_export")
        shutil.rmtree(out, ignore_errors=True)
        command(sys.executable, "-m", "mmsr1.models.export", str(run), "--out", str(out), "--dtype", "float32")
        gap, _ = command(sys.executable, "-m", "acceptance._export_gap", str(run), str(out))
        figures = json.loads(gap.stdout.splitlines()[-1])
        checks.append(at_most("7", f"{name}: vLLM on the export against the trainer (nats)", figures["gap_max"], 1e-4))
    return checks


def full_step() -> list[Check]:
    """Line 8: without a GPU only the twin of CPU size can be run."""
    figures = _benchmark("full_step")
    ratio = figures["peak_gib"] / figures["planner_gib"]
    return [
        holds("8", "device", True, str(figures.get("device"))),
        holds("8", "peak memory over the planner's", 0.9 <= ratio <= 1.1, f"{ratio:.3f}"),
    ]


def _fresh_run(name: str, *overrides: str) -> Path:
    """A run that finds no answered call on disk; a text search costs one cent."""
    cache = OUTPUT / f"{name}_cache"
    shutil.rmtree(cache, ignore_errors=True)
    return training_run(name, *overrides, f"tools.cache_dir={cache}", env=rigged(price=0.01))


def _killed_and_resumed(name: str, place: str, count: int, *overrides: str) -> tuple[Path, bool, int]:
    """(run directory, whether the kill took place, answered calls that were made twice)."""
    target, cache = OUTPUT / name, OUTPUT / f"{name}_cache"
    for folder in (target, cache):
        shutil.rmtree(folder, ignore_errors=True)
    env = rigged(price=0.01, kill={"at": place, "count": count})
    arguments = (*overrides, f"tools.cache_dir={cache}", f"hydra.run.dir={target}")
    killed, _ = command(sys.executable, "train.py", *arguments, env=env, check=False)
    command(sys.executable, "train.py", f"resume={target}", env=rigged(price=0.01))
    calls = _lines(target, "ledger/rank0.jsonl")
    keys = {call["id"]: call["key"] for call in calls if call["state"] == "started"}
    answered = [keys[call["id"]] for call in calls if call["state"] == "answered"]
    unknown = len(keys) - sum(call["state"] != "started" for call in calls)
    paid = [call for call in calls if call["state"] == "started" and call["tool"] == "text_search"]
    spent = summary(target)["cost_usd"]
    if abs(spent - 0.01 * len(paid)) > 1e-9:
        raise RuntimeError(f"{name}: {len(paid)} calls of 0.01 USD ({unknown} unknown), but {spent} USD spent")
    return target, killed.returncode == -signal.SIGKILL, len(answered) - len(set(answered))


def _same(run: Path, whole: Path) -> bool:
    weights = "policy/model.safetensors"
    return (
        comparable(run) == comparable(whole)
        and _lines(run, "consumed.jsonl") == _lines(whole, "consumed.jsonl")
        and (run / weights).read_bytes() == (whole / weights).read_bytes()
    )


def _lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def _train_rows(run: Path) -> Sequence[dict[str, Any]]:
    return metrics(run, "train") if (run / "metrics.jsonl").is_file() else []


def _benchmark(name: str) -> dict[str, Any]:
    out, _ = command(sys.executable, "-m", "benchmarks", name)
    return json.loads(out.stdout.splitlines()[-1])


LINES = (
    Line("same_gradient", same_gradient),
    Line("gates", gates),
    Line("packing", packing),
    Line("loss_memory", loss_memory),
    Line("packing_speed", packing_speed),
    Line("kills", kills),
    Line("lost_rank", lost_rank),
    Line("variants", variants),
    Line("full_step", full_step),
)
