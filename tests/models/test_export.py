"""A checkpoint becomes a plain folder that transformers and vLLM load; mistakes are one line and leave nothing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors import safe_open

from mmsr1.config import register
from mmsr1.models import checkpoint, loading
from mmsr1.models.export import ExportError, export, main
from mmsr1.models.loading import load_policy
from mmsr1.models.lora import add_adapters, whole_weights
from mmsr1.models.policy import Policy
from mmsr1.models.ranks import Ranks
from mmsr1.tools.pictures import decode
from tests.rollout.engines.talks import Tiny, conversations, save_tiny, start_engine

CONF = Path(__file__).parents[2] / "conf"
REWARDS = {2: 0.5, 4: 0.25, 6: None}  # by step; the last was not validated


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return save_tiny(tmp_path_factory.mktemp("base"), tied=True)


def write_run(run: Path, base: Tiny, *overrides: str) -> dict[int, Any]:
    """A run directory as training leaves it: the model of each of its checkpoints."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("config", [f"model.path={base.folder}", "model.export_dtype=bfloat16", *overrides])
    run.mkdir()
    (run / "config.yaml").write_text(OmegaConf.to_yaml(raw, resolve=True))
    models = {}
    for step, reward in REWARDS.items():
        model = load_policy(str(base.folder), "float32", decode).model
        torch.manual_seed(step)
        if raw.model.lora_rank:
            add_adapters(model, raw.model.lora_rank, raw.model.lora_alpha)
        policy = Policy(model)
        if raw.model.freeze_vision:
            for parameter in policy.parameters_by_part()[0]:
                parameter.requires_grad_(False)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        checkpoint.write(run / "checkpoints", step, policy, [], {"reward": reward}, Ranks())
        models[step] = model
    return models


@pytest.fixture(scope="module")
def adapted(base: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    run = tmp_path_factory.mktemp("adapted") / "run"
    return run, write_run(run, base, "model.lora_rank=4", "model.lora_alpha=8")


def assert_written(folder: Path, model: Any, dtype: torch.dtype) -> None:
    """The file's tensors are of this type, and those of the model with its adapters merged in."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118  (no mapping)
    found = dict(load_policy(str(folder), str(dtype).removeprefix("torch."), decode).model.named_parameters())
    expected = dict(whole_weights(model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)


@pytest.mark.parametrize(("which", "step"), [("last", 6), ("best", 2), ("4", 4), ("00000004", 4)])
def test_the_checkpoint_asked_for_is_written_with_its_adapters_merged_in(which, step, adapted, tmp_path):
    run, models = adapted
    found, dtype = export(run, tmp_path / "out", which, "float32")
    assert (found, dtype) == (run / "checkpoints" / f"{step:08d}", "float32")
    assert_written(tmp_path / "out", models[step], torch.float32)


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_run_without_adapters_is_written_as_it_is(frozen, base, tmp_path):
    models = write_run(tmp_path / "run", base, f"model.freeze_vision={frozen}")
    export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert_written(tmp_path / "out", models[6], torch.float32)


def test_the_type_is_the_runs_own_unless_another_is_asked_for(adapted, tmp_path):
    run, models = adapted
    assert export(run, tmp_path / "own")[1] == "bfloat16"
    assert_written(tmp_path / "own", models[6], torch.bfloat16)
    export(run, tmp_path / "half", dtype="float16")
    assert_written(tmp_path / "half", models[6], torch.float16)


def test_transformers_and_vllm_load_the_folder_and_say_what_the_trained_model_says(adapted, base, tmp_path, capfd):
    from transformers import Qwen2_5_VLForConditionalGeneration  # not before the torchvision shim

    run, models = adapted
    main([str(run), "--out", str(tmp_path / "a" / "out"), "--checkpoint", "best", "--dtype", "float32"])
    out = tmp_path / "a" / "out"
    told = capfd.readouterr().out.splitlines()[-1]
    assert str(out) in told and "step 2 in float32" in told and "from_pretrained" in told
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    trained, plain = replace(base, model=models[2]), replace(base, model=model)

    async def talk() -> list[Any]:
        engine = start_engine(replace(base, folder=out))
        try:
            return await conversations(engine, base, 4)
        finally:
            await engine.close()

    turns = asyncio.run(talk())
    assert max(trained.gap(*turn) for turn in turns) < 1e-4
    assert max(plain.gap(*turn) for turn in turns) < 1e-4
    assert max(base.gap(*turn) for turn in turns) > 0.01


def test_an_empty_folder_is_filled_and_a_failure_leaves_it_empty(adapted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()

    def half(folder: Path, *rest: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(loading, "save_policy", half)
        with pytest.raises(RuntimeError, match="disk is full"):
            export(adapted[0], out)
    assert list(tmp_path.iterdir()) == [out] and not list(out.iterdir())
    export(adapted[0], out)
    assert list(tmp_path.iterdir()) == [out] and (out / "model.safetensors").exists()


def with_config(change: Callable[[str], str]) -> Callable[[Path], list[str]]:
    def spoil(run: Path) -> list[str]:
        text = (run / "config.yaml").read_text()
        assert change(text) != text
        (run / "config.yaml").write_text(change(text))
        return []

    return spoil


def no_checkpoints(run: Path) -> list[str]:
    shutil.rmtree(run / "checkpoints")
    return []


def a_lost_byte(run: Path) -> list[str]:
    file = next((run / "checkpoints" / "00000006" / "weights").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    return []


def none_validated(run: Path) -> list[str]:
    for step in (2, 4):
        shutil.rmtree(run / "checkpoints" / f"{step:08d}")
    return ["--checkpoint", "best"]


def no_run(run: Path) -> list[str]:
    shutil.rmtree(run)
    return []


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no run": (no_run, "no run there"),
    "no checkpoint": (no_checkpoints, "no complete checkpoint"),
    "no such step": (lambda run: ["--checkpoint", "3"], "--checkpoint 3: give last, best or one of the steps 2, 4, 6"),
    "no such word": (lambda run: ["--checkpoint", "newest"], "--checkpoint newest: give last"),
    "none validated": (none_validated, "no validated checkpoint"),
    "damaged checkpoint": (a_lost_byte, "bytes instead of"),
    "another model": (with_config(lambda text: text.replace("lora_rank: 4", "lora_rank: 8")), "another model"),
    "lost base model": (with_config(lambda text: text.replace("  path: ", "  path: /nowhere")), "no model there"),
    "unknown key": (with_config(lambda text: text.replace("lora_rank", "lora_rang")), "model.lora_rang"),
    "senseless value": (with_config(lambda text: text.replace("lora_rank: 4", "lora_rank: -1")), "model.lora_rank=-1"),
    "broken yaml": (with_config(lambda text: text + "\n]"), "config.yaml"),
    "half a config": (with_config(lambda text: text[: text.index("rollout:")]), "config.yaml: algorithm.kind"),
    "empty config": (with_config(lambda text: ""), "config.yaml: algorithm.kind"),
    "no such type": (lambda run: ["--dtype", "int8"], "int8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, adapted, tmp_path, capfd):
    spoil, reason = MISTAKES[mistake]
    run = shutil.copytree(adapted[0], tmp_path / "run")
    arguments = spoil(run)
    with pytest.raises(SystemExit) as caught:
        main([str(run), "--out", str(tmp_path / "out"), *arguments])
    told = capfd.readouterr().err
    assert caught.value.code == 2 and reason in told and told.startswith("error: ") and told.count("\n") == 1, told
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_what_is_there_already_is_not_touched(adapted, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export(adapted[0], tmp_path)
    with pytest.raises(ExportError, match="is a file"):
        export(adapted[0], tmp_path / "file")
    with pytest.raises(ExportError, match="Not a directory"):
        export(adapted[0], tmp_path / "file" / "out")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_help_and_a_missing_argument_need_nothing_heavy():
    look = "import sys; from mmsr1.models.export import main\ntry: main([])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], cwd=CONF.parent, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "False\n"
    assert done.stderr.count("\n") == 1 and "run_dir, --out" in done.stderr
