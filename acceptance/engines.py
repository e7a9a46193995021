"""Issue C: every engine behind one interface, and the gap between sampling and training under control."""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from acceptance.scale import DEFAULT, rigged

ENGINES = ("vllm", "vllm_process", "vllm_server", "transformers")
FAULTS = {
    "encoder_cache": "encoder cache not reset",
    "expanded": "expanded ids sent",
    "model.visual.blocks.0.attn.qkv.weight": "one stale tensor (vision)",
    "model.language_model.layers.0.self_attn.k_proj.weight": "one stale tensor (keys)",
    "model.language_model.embed_tokens.weight": "one stale tensor (embedding)",
}
REAL_SERVERS = {"MMSR1_REAL_SERVERS": "1"}
SLOW_TOOLS = {"median": 2.0, "sigma": 1.0}
SERVED_STEPS = 40  # enough for a server to start while training goes on


def conformance() -> list[Check]:
    """Line 1: 64 conversations on every engine, tied and untied; three kinds of planted fault in each."""
    checks, greedy = [], {}
    for engine in ENGINES:
        for tied in ("tied", "no-tied"):
            found = _conformance(engine, tied, 64)
            name = f"{engine}, {'tied' if tied == 'tied' else 'untied'}"
            if found["violation"]:
                checks.append(holds("1", name, False, found["violation"]))
                continue
            greedy[engine, tied] = found["greedy"]
            start, everything, frozen = found["gaps"]
            checks.append(at_most("1", f"{name}: gap at the start (nats)", start, 1.6e-5))
            checks.append(at_most("1", f"{name}: gap after a sync, vision tower trained", everything, 1.6e-5))
            checks.append(at_most("1", f"{name}: gap after a sync, vision tower frozen", frozen, 1.6e-5))
        for fault, what in FAULTS.items():
            found = _conformance(engine, "tied", 6, fault)
            checks.append(holds("1", f"{engine}: {what}: caught", bool(found["violation"]), found["violation"] or ""))
    for tied in ("tied", "no-tied"):
        same = {greedy.get((engine, tied)) for engine in ENGINES}
        checks.append(holds("1", f"{tied}: same greedy tokens from all engines", len(same) == 1 and None not in same))
    return checks


def servers() -> list[Check]:
    """Line 2: training on two servers, of which one is killed in the middle of a rollout and started again later."""
    run = OUTPUT / "servers"
    shutil.rmtree(run, ignore_errors=True)
    ports = [free_port(), free_port()]
    first, second = (_serve(port) for port in ports)
    urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    arguments = (DEFAULT, "rollout=vllm_server", f"rollout.server.urls=[{urls}]", f"trainer.max_steps={SERVED_STEPS}")
    sizes = (f"trainer.val_every={SERVED_STEPS}", "data.val_size=60", f"hydra.run.dir={run}")
    training = subprocess.Popen(
        [sys.executable, "train.py", *arguments, *sizes], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _until(lambda: _steps(run) >= 3, training)
        killed_at = _steps(run)
        _until(lambda: _running(ports[1]) > 0, training)
        second.send_signal(signal.SIGKILL)
        second.wait()
        _until(lambda: _steps(run) >= killed_at + 2, training)
        second = _serve(ports[1])
        _until(lambda: training.poll() is not None, training)
        served, version = _finished(ports[1]), _get(ports[1], "/weight_info")["weight_version"]
    finally:
        for process in (first, second, training):
            process.kill()
            process.wait()
    rows = metrics(run, "train")
    consumed = [json.loads(line)["examples"] for line in (run / "consumed.jsonl").read_text().splitlines()]
    failed = sum(row.get("stop_engine_failure", 0.0) for row in rows)
    tests = _tests("2", "two real servers (tests)", "tests/rollout/engines/test_vllm_server_real.py", env=REAL_SERVERS)
    return [
        tests,
        holds(
            "2",
            "all steps completed",
            [row["step"] for row in rows] == list(range(1, SERVED_STEPS + 1)),
            f"{len(rows)} of {SERVED_STEPS}",
        ),
        holds("2", "examples of every step", all(len(step) == 16 for step in consumed), f"{sum(map(len, consumed))}"),
        at_most("2", "episodes that ended in an engine failure", failed, 0),
        at_most("2", "largest gap of any step (nats)", max(row["logprob_gap_max"] for row in rows), 1e-3),
        at_least("2", "requests that the restarted server answered", served, 1),
        holds("2", "weights of the restarted server", version.endswith(f"-{SERVED_STEPS}"), version),
    ]


def rollout_latency() -> list[Check]:
    """Line 3."""
    found = _benchmark("rollout_latency")
    row = next(row for row in found["medians"] if row["median_s"] == 0.5)
    return [
        holds("3", "engine", True, found["engine"]),
        at_most("3", "wall over the lower bound, median 0.5 s", row["over_bound"], 1.25),
        at_least("3", "speed-up over turn-synchronous, of what the draws allow", row["speedup_share"], 0.85),
        at_least("3", "one call: speed-up over TRL, of sum over critical path", row["trl_share"], 0.75),
    ]


def speed() -> list[Check]:
    """Line 4."""
    step, sync, engine = (_benchmark(name) for name in ("grpo_step", "weight_sync", "engine"))
    return [
        at_least("4", "a GRPO step, times faster than TRL 1.16", step["speedup"], 1.2),
        at_most("4", "peak memory over TRL's", step["memory_ratio"], 1.0),
        at_most("4", "weight sync of 100M parameters over writing the bytes", sync["ratio"], 2.0),
        at_least("4", "tokens a second over vLLM's own offline", engine["ratio"], 0.9),
    ]


def overlap() -> list[Check]:
    """Line 5: rollouts run ahead of training, with slow tools; three seeds at a time, since they mostly wait."""
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(_overlapped, range(3)))
    checks = []
    for seed, run in enumerate(runs):
        # The first step has nothing to overlap with; a step's rollouts run while the step before it trains.
        rows = metrics(run, "train")
        ratios = [
            b["seconds_step"] / max(b["seconds_rollout"], a["seconds_train"])
            for a, b in zip(rows[1:], rows[2:], strict=False)
        ]
        checks.append(
            at_most("5", f"seed {seed}: step over max(rollout, train), median", statistics.median(ratios), 1.25)
        )
        checks.append(at_most("5", f"seed {seed}: the same, mean of all steps", statistics.fmean(ratios), 1.25))
    finals = [summary(run)["final"] for run in runs]
    mean = {name: statistics.fmean(final[name] for final in finals) for name in finals[0] if not name.endswith("_ci95")}
    checks += [
        at_least("5", "gate: accuracy", mean["accuracy"], 0.92),
        at_least("5", "gate: reward", mean["reward"], 0.88),
        at_most("5", "gate: search_ratio_free", mean["search_ratio_free"], 0.12),
        at_least("5", "gate: search_ratio_required", mean["search_ratio_required"], 0.85),
        at_least("5", "lowest accuracy of a seed", min(final["accuracy"] for final in finals), 0.89),
        at_most("5", "highest search_ratio_free of a seed", max(final["search_ratio_free"] for final in finals), 0.20),
    ]
    tests = _tests(
        "5", "correction off is biased, on is not (tests)", "tests/models/test_correction.py", "-k", "biased"
    )
    return [*checks, _drift_seen(), tests]


def _drift_seen() -> Check:
    """A vision cache that outlives the weight sync stops the run although every trained token is stale."""
    fault = ("rollout.overlap=1", "model.freeze_vision=false", "rollout.reset_encoder_cache=false")
    sizes = ("trainer.max_steps=6", "trainer.val_every=6", "data.val_size=24")
    run = OUTPUT / "overlap_drift"
    shutil.rmtree(run, ignore_errors=True)
    done, _ = command(sys.executable, "train.py", DEFAULT, *fault, *sizes, f"hydra.run.dir={run}", check=False)
    stopped = done.returncode != 0 and "weights, caches or positions are out of step" in done.stderr
    return holds("5", "a planted drift stops a run with overlap", stopped)


def _overlapped(seed: int) -> Path:
    return training_run(
        f"overlap_{seed}",
        DEFAULT,
        "rollout.overlap=1",
        f"seed={seed}",
        "trainer.val_every=40",
        env=rigged(delay=SLOW_TOOLS),
    )


def dynamic_sampling() -> list[Check]:
    """Line 6."""
    return [
        _tests("6", "20,000 episodes, lengths tied to latency (tests)", "tests/rollout/test_stream.py"),
        _tests("6", "consumed examples of a whole run (tests)", "tests/rollout/test_callback.py", "-k", "refilled"),
    ]


def gpu() -> list[Check]:
    """Line 7: where torch sees a GPU, the main job on it; elsewhere the line says so and does not hold."""
    seen, _ = command(sys.executable, "-c", "import torch; print(torch.cuda.is_available())")
    if seen.stdout.strip() != "True":
        return [holds("7", "a GPU", False, "none here: not run")]
    on_gpu = ("rollout=transformers", "trainer.accelerator=cuda", "algorithm.gap_limit=null")
    final = summary(training_run("gpu", DEFAULT, *on_gpu))["final"]
    step = _benchmark("sampling_step")
    return [
        at_least("7", "main job: accuracy", final["accuracy"], 0.89),
        at_most("7", "main job: search_ratio_free", final["search_ratio_free"], 0.20),
        holds("7", "3B: tokens a second, sampled", True, f"{step['sampled_per_s']:.0f}"),
        holds("7", "3B: tokens a second, trained", True, f"{step['trained_per_s']:.0f}"),
    ]


def _conformance(engine: str, tied: str, count: int, fault: str | None = None) -> dict[str, Any]:
    arguments = [engine, f"--{tied}", "--count", str(count), *(["--fault", fault] if fault else [])]
    out, _ = command(sys.executable, "-m", "acceptance._conformance", *arguments)
    return json.loads(out.stdout.splitlines()[-1])


def _benchmark(name: str) -> dict[str, Any]:
    out, _ = command(sys.executable, "-m", "benchmarks", name)
    return json.loads(out.stdout.splitlines()[-1])


def _tests(line: str, what: str, *arguments: str, env: dict[str, str] | None = None) -> Check:
    out, _ = command(sys.executable, "-m", "pytest", "-q", *arguments, env=env, check=False)
    return holds(line, what, not out.returncode and " passed" in out.stdout, out.stdout.strip().splitlines()[-1])


def _serve(port: int) -> subprocess.Popen[bytes]:
    flags = ["--max-model-len", "1024", "--images-per-prompt", "8", "--kv-cache-gib", "0.25", "--cpu-threads", "1"]
    policy = str(ROOT / "mmsr1" / "models" / "starting_policy")
    return subprocess.Popen(
        [sys.executable, "-m", "mmsr1.rollout.engines.serve", policy, "--port", str(port), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _until(condition: Any, training: subprocess.Popen[bytes], limit_s: float = 900) -> None:
    start = time.monotonic()
    while not condition():
        if training.poll() is not None and not condition():
            raise RuntimeError(
                f"training ended with {training.returncode}: {(training.stderr or _Nothing).read()[-1500:]!r}"
            )
        if time.monotonic() - start > limit_s:
            raise TimeoutError("the servers' run came to a halt")
        time.sleep(0.02)


class _Nothing:
    @staticmethod
    def read() -> bytes:
        return b""


def _steps(run: Path) -> int:
    return len(metrics(run, "train")) if (run / "metrics.jsonl").is_file() else 0


def _get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text = answer.read().decode()
    return json.loads(text) if path != "/metrics" else text


def _gauge(port: int, name: str) -> float:
    rows = [row for row in _get(port, "/metrics").splitlines() if row.startswith(name)]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def _running(port: int) -> float:
    return _gauge(port, "vllm:num_requests_running")


def _finished(port: int) -> float:
    return _gauge(port, "vllm:request_success_total")


LINES: Sequence[Line] = (
    Line("conformance", conformance),
    Line("servers", servers),
    Line("rollout_latency", rollout_latency),
    Line("speed", speed),
    Line("overlap", overlap),
    Line("dynamic_sampling", dynamic_sampling),
    Line("gpu", gpu),
)
