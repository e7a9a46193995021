"""Issue E, lines 1, 2, 3 and 7: bundles that are recorded, passed on, replayed, and imported."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acceptance.learning import SHARED
from acceptance.lines import OUTPUT, ROOT, Check, at_least, at_most, command, holds, summary, training_run
from mmsr1.data.formats import load_examples
from mmsr1.tools.bundle.format import FILES, MANIFEST, Bundle, verify
from mmsr1.tools.bundle.record import FOLDER, Recorder
from mmsr1.tools.bundle.rows import call_key
from mmsr1.tools.bundle.table import Damaged
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.store import Store
from mmsr1.types import Picture, ToolItem, ToolResult

DEFAULT, NO_PENALTY = "+experiment=grpo_balanced", "+experiment=grpo_no_penalty"
BUNDLE = (sys.executable, "-m", "mmsr1.tools.bundle")
FLIPS, RESULTS = 300, 100_000
# A network namespace of its own, in which only the loopback is up, for the processes of torch.
OFFLINE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def replay_identical() -> list[Check]:
    """Line 1: a default run, recorded, exported, and run again elsewhere without a network."""
    cache, bundle = _fresh("frozen_cache"), _fresh("frozen_bundle")
    settings = (DEFAULT, "rollout.deterministic=true")
    run = training_run("frozen_recorded", *settings, f"tools.cache_dir={cache}")
    command(*BUNDLE, "export", str(run), "--out", str(bundle))
    command(*BUNDLE, "verify", str(bundle))
    again = _offline_run("frozen_replayed", *settings, "tools=replay", f"tools.bundle={bundle}")
    same = _lasting(run) == _lasting(again)
    rows = len(_lasting(run))
    tests, _ = command(sys.executable, "-m", "pytest", "-q", "tests/tools/bundle/test_bundle_format.py", check=False)
    refused = not tests.returncode and " passed" in tests.stdout
    return [
        holds("1", "network refused for the replay", _is_refused()),
        holds("1", f"metrics.jsonl of both runs ({rows} rows), up to seconds_* and cache_*", same and rows > 40),
        at_least("1", "searches replayed", summary(again)["tools"]["text_search_bundle"]["hits"], 1),
        at_most("1", f"of {FLIPS} flipped bytes, not found by verify", _flips_missed(bundle), 0),
        holds("1", "paths outside, huge blobs, wrong hashes refused (tests)", refused, tests.stdout.strip()[-40:]),
    ]


def sweep() -> list[Check]:
    """Line 2: what the arm that nearly always searches has recorded serves the others."""
    cache, bundle = _fresh("sweep_cache"), _fresh("sweep_bundle")
    recorded = training_run("sweep_recorded", NO_PENALTY, "seed=0", f"tools.cache_dir={cache}")
    command(*BUNDLE, "export", str(recorded), "--out", str(bundle))
    replay = ("seed=0", "tools=replay", f"tools.bundle={bundle}", "tools.on_miss=empty")
    default = _offline_run("sweep_default", DEFAULT, *replay)
    dear = _offline_run("sweep_penalty", DEFAULT, "rewards.search_penalty=0.2", *replay)
    final = summary(default)["final"]
    rates = {name: _miss_rate(run) for name, run in (("default", default), ("penalty 0.2", dear))}
    return [
        at_least("2", "search ratio of the arm that recorded", summary(recorded)["final"]["search_ratio"], 0.8),
        *(at_most("2", f"miss rate of the arm {name}", rate, 0.10) for name, rate in rates.items()),
        at_least("2", "default arm on the bundle: accuracy", final["accuracy"], 0.89),
        at_most("2", "default arm on the bundle: search_ratio_free", final["search_ratio_free"], 0.20),
    ]


def fvqa_pickles() -> list[Check]:
    """Line 3: by the command, with the real questions; the rest in tests."""
    folder, data = _fresh("fvqa_pickles"), SHARED / "infoseek_mini.parquet"
    folder.mkdir(parents=True)
    examples, _ = load_examples(data)
    shown = Image.open(io.BytesIO(examples[0].images[0].data))
    found = {
        example.id: {
            "tool_returned_web_title_list": ["A page", "Another"],
            "tool_returned_images_urls": ["https://img.example/1.jpg", shown],
        }
        for example in examples
    }
    (folder / "good.pkl").write_bytes(pickle.dumps(found))
    (folder / "bad.pkl").write_bytes(pickle.dumps({"x": {"tool_returned_web_title_list": [_Evil(folder / "marker")]}}))
    given = ("--data", str(data), "--out", str(folder / "bundle"))
    command(*BUNDLE, "import-fvqa", str(folder / "good.pkl"), *given)
    bundle = Bundle(folder / "bundle")
    rows = [bundle.find(call_key("image_search", {"image": one.images[0].digest})) for one in examples]
    items = [row.result(bundle.picture).items for row in rows if row is not None]
    whole = all(len(found) == 2 and found[0].url and found[1].thumbnail for found in items)
    given = ("--data", str(data), "--out", str(folder / "another"))
    refused, _ = command(*BUNDLE, "import-fvqa", str(folder / "bad.pkl"), *given, check=False)
    untouched = not (folder / "marker").exists() and not (folder / "another").exists()
    named = refused.returncode == 2 and "posix.system" in refused.stderr and refused.stderr.count("\n") == 1
    tests, _ = command(sys.executable, "-m", "pytest", "-q", "tests/tools/bundle/test_bundle_fvqa.py", check=False)
    return [
        holds("3", "searches converted and found again", len(items) == len(examples) and whole, f"{len(items)}"),
        holds("3", "a pickle that would run something: refused by name", named, refused.stderr.strip()[-90:]),
        holds("3", "nothing ran, nothing was left", untouched),
        holds("3", "tests", not tests.returncode and " passed" in tests.stdout, tests.stdout.strip()[-40:]),
    ]


class _Evil:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._marker}",)


def large_bundle(results: int = RESULTS) -> list[Check]:
    """Line 7: memory and time at 100k results."""
    folder = _fresh("large_bundle")
    asyncio.run(_record(folder, results))
    exported = _peak(*BUNDLE, "export", str(folder / "run"), "--cache", str(folder / "cache"), "--out", f"{folder}/b")
    verified = _peak(*BUNDLE, "verify", f"{folder}/b")
    start = time.perf_counter()
    bundle = Bundle(folder / "b")
    row = bundle.find(call_key("text_search", {"text": "question 7"}))
    opened = time.perf_counter() - start
    size = sum(file.stat().st_size for file in (folder / "b").iterdir()) / 2**20
    counted = f"{bundle.manifest.rows} rows, {bundle.manifest.blobs} thumbnails, {size:.0f} MiB"
    sound = bundle.manifest.rows == results and row is not None
    shutil.rmtree(folder)
    return [
        holds("7", "bundle", sound, counted),
        at_most("7", "export: peak memory of the process (MiB)", exported, 300),
        at_most("7", "verify: peak memory of the process (MiB)", verified, 300),
        at_most("7", "open and first answer (s)", opened, 1.0),
    ]


async def _record(folder: Path, results: int) -> None:
    """A run that has made so many searches: half texts with summaries, half pictures with five thumbnails."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(5000)]
    pool = [encode_png(Image.fromarray(_noise(number))) for number in range(5000)]
    store = Store(folder / "cache")
    recorder = Recorder(store, folder / "run" / FOLDER / "rank0.jsonl")
    texts = _Named("text_search", "web:v1")
    images = _Named("image_search", "lens:v1")
    for number in range(results):
        if number % 2:
            items = tuple(
                ToolItem(f"Page {n}", " ".join(draw.choices(words, k=60)), f"https://a.example/{n}") for n in range(5)
            )
            await recorder.note(texts, f"question {number}", ToolResult("ok", items, 0.02, 1.0))
        else:
            shown = draw.sample(pool, 5)
            items = tuple(ToolItem(f"Page {n}", "", f"https://a.example/{n}", one) for n, one in enumerate(shown))
            await recorder.note(images, Picture(b"picture %d" % number), ToolResult("ok", items, 0.02, 1.0))
    store.close()


class _Named:
    """Who a recorder is told has answered."""

    price_usd = 0.0

    def __init__(self, name: Any, backend: str) -> None:
        self.name, self.backend = name, backend

    async def __call__(self, query: Any) -> ToolResult:
        raise NotImplementedError


def _noise(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 255, (28, 28, 3), dtype=np.uint8)


def _peak(*arguments: str) -> float:
    """Run a command; the most memory that it took, in MiB.

    Of its own address space: what wait4 tells of a child begins with what its parent had at the fork.
    """
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most, status = 0.0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        told = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        most = max(most, int(told[1]) / 1024) if told else most
        time.sleep(0.01)
    if process.returncode:
        _, said = process.communicate()
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {said[-500:]}")
    return most


def _fresh(name: str) -> Path:
    shutil.rmtree(OUTPUT / name, ignore_errors=True)
    return OUTPUT / name


def _offline_run(name: str, *overrides: str) -> Path:
    """A training run in another folder, with a cache of its own and without a network."""
    target = _fresh(name)
    settings = (f"tools.cache_dir={_fresh('unused_cache')}", f"hydra.run.dir={target}")
    command(*OFFLINE, sys.executable, "train.py", *overrides, *settings)
    return target


def _is_refused() -> bool:
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    refused, _ = command(*OFFLINE, sys.executable, "-c", connect, check=False)
    return refused.returncode != 0 and "unreachable" in refused.stderr


def _lasting(run: Path) -> Sequence[Mapping[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "cache_"))} for row in rows]


def _miss_rate(run: Path) -> float:
    rows = [summary(run)["tools"][f"{tool}_search_bundle"] for tool in ("image", "text")]
    return sum(row.get("failures/not_in_bundle", 0) for row in rows) / sum(row["calls"] for row in rows)


def _flips_missed(bundle: Path) -> int:
    """Flip single bits of a copy, in every file."""
    copy, draw, missed = _fresh("frozen_flipped"), random.Random(0), 0
    shutil.copytree(bundle, copy)
    for number in range(FLIPS):
        file = copy / (MANIFEST, *FILES)[number % 5]
        with file.open("r+b") as data:
            place = draw.randrange(file.stat().st_size)
            data.seek(place)
            byte = data.read(1)
            data.seek(place)
            data.write(bytes([byte[0] ^ 1 << draw.randrange(8)]))
            data.flush()
            try:
                verify(copy)
                missed += 1
            except Damaged:
                pass
            data.seek(place)
            data.write(byte)
    verify(copy)
    return missed
