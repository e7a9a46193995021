"""The planner's command: what it prints, what it refuses, and what train.py asks of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from mmsr1.config import CONF, Config, ConfigError, register
from mmsr1.models import plan
from mmsr1.models.memory import GIB, breakdown
from mmsr1.models.plan import STARTING_POLICY, assumptions, composed, main, plan_of, settle, settled
from mmsr1.models.step_memory import Engine
from mmsr1.models.step_time import step_time, training_flops

SCALE = "scale=8xh100"


def said(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    main(list(overrides))
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(overrides))
    out, line = capsys.readouterr()
    assert ended.value.code == 2 and not out
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def rows(text: str) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if "│" in line]
    return {cell[0]: cell[1] for cell in cells}


def test_a_plan_adds_up_and_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(said(capsys, SCALE, "model=qwen2_5_vl_7b"))
    names = list(found)
    parts = [float(found[name]) for name in names[: names.index("total")]]
    assert len(parts) == 12
    # The total is not read: the seconds have one too.
    assert sum(parts) == pytest.approx(float(found["at the backward pass of a decoder layer"]), abs=0.1)
    assert found["weights"] == found["gradients"] == "3.86"
    assert found["there is"] == "79.60"
    assert {"sampling", "computing", "communicating"} <= found.keys()


def test_what_is_taken_for_granted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, SCALE)
    assert "8 processes, moments in float32, offload false" in text
    for piece in ("989 TFLOP/s", "3.35 TB/s", "training at 35%", "300 GB/s between GPUs", "1000 tokens, 160 of them"):
        assert piece in text
    assert "40 GB/s between GPUs" in said(capsys, "scale=4x8h100")
    assert "H200 SXM" in said(capsys, SCALE, "trainer.gpu_memory_gib=139.8")


def test_without_a_gpu_there_is_no_limit_and_no_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert rows(text)["there is"] == "no limit"
    assert "seconds" not in text


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["trainer.devices=2", "trainer.offload=false"], "trainer.gpu_memory_gib=79.6: a step needs "),
        (
            ["model.path=some/model"],
            "model.path=some/model: its sizes are not known here; run hf download some/model config.json",
        ),
        (["rollout.vllm.kv_cache_gib=0.1"], "rollout.vllm.kv_cache_gib=0.1: one episode of "),
        (
            ["rollout.vllm.extra.gpu_memory_utilization=0.2"],
            "rollout.vllm.extra.gpu_memory_utilization=0.2: one episode",
        ),
        (["trainer.optimizer_state=int8"], "trainer.optimizer_state=int8: must be one of float32, bfloat16"),
        (["model.lora_ranks=3"], "did you mean lora_rank?"),
        (["algorithm.token_budget=0"], "algorithm.token_budget=0: must be positive"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    overrides: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in refused(capsys, SCALE, *overrides)


def test_the_refusal_names_the_change_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, SCALE, "model.activation_checkpointing=false", "trainer.offload=false")
    assert "; model.activation_checkpointing=true makes it " in line
    assert said(capsys, SCALE, "trainer.offload=false")


def test_the_sizes_of_a_folder_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(STARTING_POLICY / "config.json", tmp_path)
    model, *rest = composed([SCALE, f"model.path={tmp_path}"])
    assert plan_of(model, *rest).shape == plan_of(*composed([SCALE, f"model.path={STARTING_POLICY}"])).shape
    other = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert "the model is a llama" in refused(capsys, SCALE, f"model.path={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert f"model.path={tmp_path}: " in refused(capsys, SCALE, f"model.path={tmp_path}")


def test_a_policy_from_nothing_has_the_sizes_of_the_configuration() -> None:
    shape = plan_of(*composed(["model=tiny", "model.layers=5", "model.hidden=256"])).shape
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vision.depth) == (5, 256, 512, 2)
    assert plan_of(*composed(["model=tiny"])).shape == plan_of(*composed([])).shape


def test_the_hub_cache_comes_before_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "config.json"
    raw = json.loads((plan.SHAPES / "Qwen2.5-VL-3B-Instruct.json").read_text()) | {"num_hidden_layers": 7}
    cached.write_text(json.dumps(raw))
    monkeypatch.setattr(plan, "try_to_load_from_cache", lambda path, file: str(cached))
    assert plan_of(*composed([SCALE])).shape.layers == 7


def test_the_engine_is_the_one_that_is_chosen() -> None:
    def engine(*overrides: str) -> Engine:
        return plan_of(*composed([SCALE, *overrides])).engine

    assert engine("rollout.engine=vllm_server", "rollout.server.urls=[http://node7:8000]") == Engine()
    few, many = (engine("rollout.engine=transformers", f"rollout.transformers.max_batch={rows}") for rows in (8, 32))
    assert many.cache == 4 * few.cache > 0 and many.weights == few.weights == engine().weights
    assert engine("rollout.sleep=true").sleeps and not engine().sleeps


def configuration(*overrides: str) -> Config:
    """train.py's own, of the built-in data."""
    register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        made: Any = OmegaConf.to_object(hydra.compose("config", [*overrides, "data=emblem"]))
    return made


def test_train_gets_what_it_left_open() -> None:
    fixed = [SCALE, "rollout.vllm.kv_cache_gib=8"]  # or less memory would only be less cache
    needs = [
        breakdown(settled(*composed([*fixed, f"trainer.optimizer_state={s}"]))).total for s in ("float32", "bfloat16")
    ]
    for room, expected in (
        (needs[0], ("float32", False)),
        (needs[0] - GIB, ("bfloat16", False)),
        (needs[1] - GIB, ("float32", True)),
    ):
        chosen = settle(configuration(*fixed, f"trainer.gpu_memory_gib={room / GIB + 0.01}")).trainer
        assert (chosen.optimizer_state, chosen.offload) == expected
    # Without a limit there is nothing to choose, and the model's sizes are not looked at.
    chosen = settle(configuration("trainer.optimizer_state=bfloat16", "model.path=some/model")).trainer
    assert (chosen.optimizer_state, chosen.offload) == ("bfloat16", False)
    with pytest.raises(ConfigError, match="trainer.gpu_memory_gib=20: a step needs"):
        settle(configuration(*fixed, "trainer.gpu_memory_gib=20"))


def test_more_gpus_and_shorter_work_take_less_time() -> None:
    parts = composed([SCALE])
    eight, given = settled(*parts), assumptions(parts[3], parts[1])
    usual = step_time(eight, 4096, 256, given)
    assert usual.total == usual.sampling + max(usual.computing, usual.communicating)
    assert step_time(settled(*composed(["scale=4x8h100"])), 4096, 256, given).computing == pytest.approx(
        usual.computing / 4, rel=0.01
    )
    assert step_time(eight, 4096, 0, given).sampling == 0
    assert step_time(eight, 4096, 32, given).sampling > usual.sampling
    for cheaper in ("model.freeze_vision=true", "model.lora_rank=64", "model.activation_checkpointing=false"):
        assert training_flops(plan_of(*composed([SCALE, cheaper])), given, True) < training_flops(eight, given, True)


def test_a_token_takes_six_flops_a_parameter() -> None:
    """Twice in the forward pass, four times in the backward pass; the head is computed again instead of stored."""
    parts = composed([SCALE, "algorithm.kl_weight=0", "model.activation_checkpointing=false"])
    given = replace(assumptions(parts[3], parts[1]), tokens=1, sampled=1, image_tokens=0)
    found = plan_of(*parts)
    each = found.shape.layer + found.shape.attention
    assert training_flops(found, given, False) == 6 * found.shape.layers * each + 8 * found.shape.head
    assert training_flops(found, given, True) == 8 * found.shape.layers * each + 10 * found.shape.head
