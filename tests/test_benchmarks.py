"""The benchmarks, at sizes that take seconds: what they print, and that they compare like with like."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import _memory, _peer, loss_memory, packing
from mmsr1.models.logprob_head import token_logprobs


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert program.main() == 0
    return capsys.readouterr().out


def no_peer() -> Path:
    raise _peer.PeerError("not here")


@pytest.fixture
def small_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LENGTH": 24, "VOCABULARY": 1100, "HIDDEN": 256, "CHUNK": 16}.items():
        monkeypatch.setattr(loss_memory, name, value)
    monkeypatch.setattr(loss_memory, "_in_a_process", loss_memory.main)
    monkeypatch.setattr(_peer, "python", no_peer)


@pytest.fixture
def small_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [packing.Trajectory(20, (("image_search", 30), ("answer", 40))), packing.Trajectory(30, (("answer", 20),))]
    sizes = {"GROUP": 2, "REPEATS": 1, "QUESTION_EDGE": 112, "THUMBNAIL_EDGE": 28, "PASSAGE": 5}
    for name, value in {**sizes, "trajectories": lambda: found}.items():
        monkeypatch.setattr(packing, name, value)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)  # a benchmark sets them


def test_the_benchmarks_are_listed_and_others_are_refused(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="0"):
        printed(capsys, monkeypatch, "--help")
    listed = re.search(r"\{(.*?)\}", capsys.readouterr().out)
    known = {"engine", "full_step", "grpo_step", "loss_memory", "packing", "rollout_latency", "weight_sync"}
    assert listed and known <= set(listed[1].split(","))
    with pytest.raises(SystemExit, match="2"):
        printed(capsys, monkeypatch, "_memory")


def test_the_last_line_of_loss_memory_is_json(capsys, monkeypatch, small_loss):
    rows = printed(capsys, monkeypatch, "loss_memory").splitlines()
    figures = json.loads(rows[-1])
    assert figures["benchmark"] == "loss_memory" and figures["tokens"] == 4 * 24
    assert all(isinstance(figures[name], float) for name in ("ours_mib", "full_logits_mib"))
    assert figures["trl_mib"] is figures["trl_version"] is None
    assert any("ours_mib" in row for row in rows[:-1])


def test_full_logits_that_would_not_fit_are_left_out(monkeypatch, small_loss):
    monkeypatch.setattr(loss_memory, "available_mib", lambda: 0.0)
    assert loss_memory.measure()["full_logits_mib"] is None


def test_the_losses_beside_each_other_have_the_same_gradient(small_loss):
    gradients = []
    for prepare in (loss_memory._ours, loss_memory._full_logits):
        model = loss_memory._model()
        prepare(model, 24)()
        gradients.append(model.lm_head.weight.grad)
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-4)


def test_the_last_line_of_packing_is_json(capsys, monkeypatch, small_packing):
    figures = json.loads(printed(capsys, monkeypatch, "packing").splitlines()[-1])
    assert figures["benchmark"] == "packing" and figures["episodes"] == 2
    assert figures["packed_over_padded"] == pytest.approx(
        figures["packed_tokens_per_second"] / figures["padded_tokens_per_second"]
    )
    # 64 patches of the shared image and 5 thumbnails of 4, which only one of the two has seen.
    assert (figures["vision_patches_packed"], figures["vision_patches_padded"]) == (64 + 20, 2 * 64 + 20)
    assert figures["vision_saved"] == pytest.approx(64 / 148)


def test_packing_compares_equal_losses_or_nothing(monkeypatch, small_packing):
    step = packing.Padded.step
    monkeypatch.setattr(packing.Padded, "step", lambda self, group: step(self, group) + 0.01)
    with pytest.raises(RuntimeError, match="different losses"):
        packing.measure()


def test_the_recorded_lengths_are_those_of_the_trajectories():
    if not packing.TRACES.is_file():
        pytest.skip(f"no {packing.TRACES}")
    assert packing.trajectories() == packing.recorded()


def test_without_the_trajectories_their_recorded_lengths_stand_in(tmp_path: Path):
    found = packing.trajectories(tmp_path / "none.jsonl")
    assert len(found) == 25 and found[0] == packing.Trajectory(136, (("image_search", 295), ("text_search", 269)))


def test_a_peak_is_seen_though_it_is_gone_at_the_end():
    assert _memory.peak_above_now_mib(lambda: b"x" * (64 * 2**20)) == pytest.approx(64, abs=4)
    assert _memory.peak_above_now_mib(lambda: None) < 4


def test_the_head_takes_little_more_than_one_chunk_of_logits():
    chunk, vocabulary = 256, 60_000
    hidden, weight = torch.randn(2 * chunk, 16, requires_grad=True), torch.randn(vocabulary, 16, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    target = torch.arange(2 * chunk)
    token_logprobs(hidden, weight, target, chunk)[0].sum().backward()  # kernels are set up
    outputs = []
    forward = _memory.peak_above_now_mib(lambda: outputs.extend(token_logprobs(hidden, weight, target, chunk)))
    backward = _memory.peak_above_now_mib(outputs[0].sum().backward)
    one = chunk * vocabulary * 4 / 2**20
    assert 0.5 * one < forward < 1.5 * one and 0.5 * one < backward < 1.5 * one
