"""The planner's arithmetic beside the library's parameters and beside steps whose every tensor is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._episodes import Sizes, groups
from benchmarks._simulation import Peak, Simulated, peak_bytes
from benchmarks.full_step import PATCHES, library_config
from mmsr1.batch import Batch
from mmsr1.models.adamw import LowMemoryAdamW
from mmsr1.models.grpo import LossSpec
from mmsr1.models.lora import add_adapters
from mmsr1.models.memory import GIB, breakdown, by_moment, choose, fits
from mmsr1.models.packing import flatten, pack
from mmsr1.models.plan import SHAPES
from mmsr1.models.policy_shape import PolicyShape
from mmsr1.models.step_memory import OPTIMIZER_COPIES, Engine, TrainingPlan
from tests.models.conversations import tiny_model

IMAGE_TOKEN = 8191
SIZES = Sizes(1500, 400, 400, 224, 112)  # 3,633 tokens, 128 of them in pictures


def recorded(name: str = "Qwen2.5-VL-7B-Instruct") -> dict[str, Any]:
    return json.loads((SHAPES / f"{name}.json").read_text())


def short(layers: int = 3, depth: int = 2, vocabulary: int = 8192, **widths: int) -> dict[str, Any]:
    """The widths of the 7B model in fewer layers and with fewer words.

    Three layers: while the second computes its gradients, those of the third are summed and the first is gathered.
    """
    config = recorded() | {
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "image_token_id": IMAGE_TOKEN,
        **widths,
    }
    vision = {"depth": depth, "fullatt_block_indexes": [depth - 1], "out_hidden_size": config["hidden_size"]}
    return config | {"vision_config": config["vision_config"] | vision}


@cache
def batch(episodes: int, sizes: Sizes) -> Batch:
    (group,) = groups(1, episodes, sizes, IMAGE_TOKEN)
    return pack([flatten(e.segments, PATCHES, IMAGE_TOKEN) for e in group.episodes_G], PATCHES, group.advantages_G)


def plan_for(config: dict[str, Any], packed: Batch, how: Simulated) -> TrainingPlan:
    tokens = len(packed.token_ids)
    return TrainingPlan(
        PolicyShape.of(config),
        token_budget=tokens,
        episode_tokens=1,
        logprob_chunk=how.chunk,
        ranks=how.ranks,
        dtype=how.dtype,
        param_dtype=how.param_dtype,
        lora_rank=how.lora_rank,
        freeze_vision=how.freeze_vision,
        activation_checkpointing=how.checkpointing,
        entropy_gradient=how.loss.entropy_weight > 0,
        reference=how.reference,
        image_share=len(packed.pixels) / 4 / tokens,
        learned_share=int(packed.loss_mask_T.sum()) / tokens,
    )


def planned_over_measured(config: dict[str, Any], packed: Batch, how: Simulated) -> float:
    """Of one forward and backward pass; it has no moments and no optimiser step."""
    plan = plan_for(config, packed, how)
    moments = {name: size for name, size in by_moment(plan).items() if name != "the optimiser step"}
    planned = max(moments.values()) - breakdown(plan).optimizer_states
    return planned / peak_bytes(library_config(config), packed, how)


MIXED = Simulated(8, dtype="bfloat16")
CASES: dict[str, tuple[dict[str, Any], Simulated]] = {
    "eight processes, mixed precision": (short(), MIXED),
    "the head's gradients are the peak": (short(vocabulary=152_064), MIXED),
    "everything saved": (short(), replace(MIXED, checkpointing=False)),
    "a long chunk of logits": (short(vocabulary=152_064), replace(MIXED, chunk=4096)),
    "and their entropy": (
        short(vocabulary=152_064),
        replace(MIXED, chunk=4096, loss=LossSpec(entropy_weight=0.01)),
    ),
    "adapters": (short(), replace(MIXED, lora_rank=16)),
    "a reference": (short(), replace(MIXED, reference=True)),
    "the tower frozen": (short(), replace(MIXED, freeze_vision=True)),
    "one process": (short(), Simulated()),
    "one process, everything saved": (short(), Simulated(checkpointing=False)),
    "one process, all bfloat16": (short(), Simulated(dtype="bfloat16", param_dtype="bfloat16")),
    "one process, mixed precision": (short(), replace(MIXED, ranks=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_what_is_planned(name: str) -> None:
    config, how = CASES[name]
    assert planned_over_measured(config, batch(2, SIZES), how) == pytest.approx(1, abs=0.06)


def test_one_long_episode_takes_what_is_planned() -> None:
    assert planned_over_measured(short(), batch(1, Sizes(3000, 500, 200, 224, 112)), MIXED) == pytest.approx(
        1, abs=0.06
    )


def test_the_vision_tower_can_be_the_peak() -> None:
    narrow = short(hidden_size=1024, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=2)
    many = batch(2, Sizes(100, 20, 20, 448, 448))
    assert planned_over_measured(narrow, many, MIXED) == pytest.approx(1, abs=0.06)
    plan = plan_for(narrow, many, MIXED)
    assert breakdown(plan).peak == "the backward pass of a vision block"


def test_the_7b_model_on_eight_gpus_takes_what_is_planned() -> None:
    """Its real sizes: a packed micro-batch of 4,000 tokens with ten pictures, checkpointing and the chunked head."""
    config = recorded() | {"image_token_id": IMAGE_TOKEN}
    assert planned_over_measured(config, batch(2, Sizes(700, 200, 240, 224, 112)), MIXED) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("size, parameters", [("7B", 8_292_166_656), ("3B", 3_754_622_976)])
def test_recorded_sizes_give_the_published_number_of_parameters(size: str, parameters: int) -> None:
    assert PolicyShape.of(recorded(f"Qwen2.5-VL-{size}-Instruct")).parameters == parameters


def test_parameters_are_the_librarys() -> None:
    model = tiny_model()
    shape = PolicyShape.of(model.config.to_dict())
    tower = sum(p.numel() for p in model.model.visual.parameters())
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.trained(0, freeze_vision=True) == shape.parameters - tower
    assert shape.layer == sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    assert shape.vision.block == sum(p.numel() for p in model.model.visual.blocks[0].parameters())
    add_adapters(model, 4, 8.0)
    assert shape.trained(4, freeze_vision=False) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "llama"}, "the model is a llama; a qwen2_5_vl is needed"),
        ({"vision_config": None}, "the model's config.json does not say its depth"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PolicyShape.of(recorded() | change)


@pytest.mark.parametrize(
    "make, copies",
    [
        (lambda parameters: torch.optim.AdamW(parameters, foreach=True), 4),  # of each of the four
        (lambda parameters: LowMemoryAdamW(parameters, 1e-3), OPTIMIZER_COPIES),
    ],
)
def test_optimisers_make_no_more_copies_than_planned(make: Callable[[Any], Any], copies: int) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(250, 1000)) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(parameters)
    optimizer.step()
    tracker = Peak()
    tracker.track_external(*parameters, *(parameter.grad for parameter in parameters), optimizer)
    before = sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("current").values())
    with tracker:
        optimizer.step()
    assert tracker.bytes - before == pytest.approx(copies * 10**6, rel=0.01)


PLAN = TrainingPlan(
    PolicyShape.of(recorded()),
    token_budget=16_384,
    episode_tokens=12_288,
    logprob_chunk=1024,
    ranks=8,
    dtype="bfloat16",
    engine=Engine(16 * GIB, 10 * GIB, 2 * GIB, GIB),
)


@given(
    ranks=st.integers(2, 64),
    tokens=st.integers(1024, 40_000),
    lora=st.sampled_from([0, 16]),
    frozen=st.booleans(),
    offload=st.booleans(),
)
def test_what_saves_memory_never_costs_any(ranks: int, tokens: int, lora: int, frozen: bool, offload: bool) -> None:
    plan = replace(PLAN, ranks=ranks, token_budget=tokens, lora_rank=lora, freeze_vision=frozen, offload=offload)
    need = breakdown(plan).total
    for saving in (
        replace(plan, ranks=2 * ranks),
        replace(plan, offload=True),
        replace(plan, freeze_vision=True),
        replace(plan, token_budget=tokens // 2),
        replace(plan, logprob_chunk=512),
        replace(plan, param_dtype="bfloat16"),
    ):
        assert breakdown(saving).total <= need
    assert breakdown(replace(plan, activation_checkpointing=False)).total >= need
    assert breakdown(replace(plan, reference=True)).total >= need
    assert max(by_moment(plan).values()) == pytest.approx(need)


def test_an_engine_that_sleeps_is_there_when_it_samples_and_not_while_the_trainer_works() -> None:
    plan = replace(PLAN, engine=Engine(2 * GIB, GIB, GIB / 2, GIB))
    beside, asleep = breakdown(plan), breakdown(replace(plan, engine=replace(plan.engine, sleeps=True)))
    assert asleep.peak == beside.peak and asleep.total == beside.total - 3.5 * GIB and not asleep.engine_weights
    larger = replace(PLAN, engine=Engine(16 * GIB, 60 * GIB, 2 * GIB, GIB, sleeps=True))
    at = by_moment(larger)
    assert breakdown(larger).peak == "sampling" and breakdown(larger).kv_cache == 60 * GIB
    assert at["sampling"] == breakdown(larger).total > max(size for name, size in at.items() if name != "sampling")
    trainer = beside.weights + beside.gradients + beside.optimizer_states + beside.micro_batches
    assert at["sampling"] == pytest.approx(trainer + 78 * GIB)


def test_the_first_choice_that_fits_is_taken() -> None:
    needs = {
        (state, away): breakdown(replace(PLAN, optimizer_state=state, offload=away)).total
        for away in (False, True)
        for state in ("float32", "bfloat16")
    }
    assert choose(PLAN, None) == ("float32", False)
    assert choose(PLAN, needs["float32", False]) == ("float32", False)
    assert choose(PLAN, needs["float32", False] - 1) == ("bfloat16", False)
    assert choose(PLAN, needs["bfloat16", False] - 1) == ("float32", True)
    host = breakdown(replace(PLAN, offload=True)).host
    assert choose(PLAN, needs["bfloat16", False] - 1, host_bytes=host - 1) == ("bfloat16", True)
    assert choose(PLAN, needs["float32", False] - 1, optimizer_state="float32") == ("float32", True)
    assert choose(PLAN, needs["float32", False], offload=True) == ("float32", True)


@pytest.mark.parametrize(
    "plan, gib, knob",
    [
        (replace(PLAN, activation_checkpointing=False), 79.6, "model.activation_checkpointing=true"),
        (replace(PLAN, token_budget=65_536), 60.0, "algorithm.token_budget=16384"),
        (replace(PLAN, token_budget=12_288), 54.0, "trainer.optimizer_state=bfloat16"),
        (replace(PLAN, ranks=2, optimizer_state="bfloat16"), 70.0, "trainer.offload=true"),
        (
            replace(PLAN, ranks=1, offload=True, logprob_chunk=16_384, learned_share=1.0),
            45.0,
            "model.logprob_chunk=1024",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_change_that_makes_it_fit(
    plan: TrainingPlan, gib: float, knob: str
) -> None:
    with pytest.raises(ValueError) as refused:
        choose(plan, gib * GIB, plan.optimizer_state, plan.offload)
    said = str(refused.value)
    assert said.startswith(f"trainer.gpu_memory_gib={gib:g}: a step needs ") and "\n" not in said
    assert f"; {knob} makes it " in said


def test_where_no_single_change_helps_the_largest_parts_are_named() -> None:
    with pytest.raises(ValueError, match=r"most of it engine_weights \(16\.0\) and .*; no change alone makes it fit"):
        choose(PLAN, 20 * GIB)
    with pytest.raises(ValueError, match="trainer.offload=true: a process needs .* GiB of CPU memory"):
        choose(PLAN, 60 * GIB, offload=True, host_bytes=GIB)


def test_adapters_make_the_7b_model_fit_on_one_gpu() -> None:
    alone = replace(PLAN, ranks=1, optimizer_state="bfloat16")
    assert not fits(alone, 79.6 * GIB)
    assert fits(replace(alone, lora_rank=64), 79.6 * GIB)
