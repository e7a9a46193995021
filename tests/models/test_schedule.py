"""Learning-rate multipliers at hand-computed steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.models.schedule import learning_rate


@pytest.mark.parametrize(
    ("step", "schedule", "warmup", "expected"),
    [
        (0, "constant", 0, 1.0),
        (9, "constant", 0, 1.0),
        (0, "constant", 4, 0.25),  # (0 + 1) / 4: the first update is not lost
        (3, "constant", 4, 1.0),
        (4, "constant", 4, 1.0),
        (0, "linear", 0, 1.0),
        (5, "linear", 0, 0.5),  # 1 - 5 / 10
        (9, "linear", 0, 0.1),
        (10, "linear", 0, 0.0),
        (25, "linear", 0, 0.0),
        (1, "linear", 2, 1.0),
        (2, "linear", 2, 1.0),
        (6, "linear", 2, 0.5),  # 1 - (6 - 2) / (10 - 2)
        (0, "cosine", 0, 1.0),
        (5, "cosine", 0, 0.5),  # (1 + cos(pi / 2)) / 2
        (10, "cosine", 0, 0.0),
        (4, "cosine", 2, (1 + math.cos(math.pi / 4)) / 2),  # t / n = 2 / 8
        (3, "linear", 10, 0.4),  # a run that is all warm-up
        (10, "linear", 10, 1.0),
    ],
)
def test_multiplier_over_ten_steps(step: int, schedule: str, warmup: int, expected: float) -> None:
    assert learning_rate(step, 10, schedule, warmup_steps=warmup) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (45, 0.525),  # half-way from 1 down to 0.05
        (0, 0.05 + 0.95 / (1 + math.exp(-10))),  # (0 - 45) / 4.5 = -10: 0.99996, high from the start
        (36, 0.05 + 0.95 / (1 + math.exp(-2))),  # 0.887
        (54, 0.05 + 0.95 / (1 + math.exp(2))),  # 0.163
        (10_000, 0.05),  # far past the decay, without overflow
    ],
)
def test_sigmoid_decay_of_the_released_script(step: int, expected: float) -> None:
    assert learning_rate(step, 100, "sigmoid") == pytest.approx(expected, abs=1e-12)


def test_sigmoid_decay_by_a_given_ratio_and_step_after_the_warm_up() -> None:
    assert learning_rate(25, 100, "sigmoid", warmup_steps=5, decay_ratio=0.5, decay_steps=20) == pytest.approx(0.75)
    assert learning_rate(4, 100, "sigmoid", warmup_steps=5, decay_ratio=0.5, decay_steps=20) == 1.0
    assert learning_rate(50, 100, "sigmoid", decay_ratio=0.0) == pytest.approx(1.0)


@given(
    total=st.integers(1, 200),
    data=st.data(),
    schedule=st.sampled_from(["constant", "linear", "cosine", "sigmoid"]),
)
def test_multipliers_rise_then_fall_within_zero_and_one(total: int, data: st.DataObject, schedule: str) -> None:
    warmup = data.draw(st.integers(0, total))
    rates = [learning_rate(step, total, schedule, warmup) for step in range(total + 1)]
    assert all(0.0 < rate <= 1.0 for rate in rates[:-1])
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step: -1 received"),
        ({"total_steps": 0}, "total_steps: 0 received"),
        ({"warmup_steps": 11}, r"warmup_steps: 11 received; give 0 to total_steps \(10\)"),
        ({"warmup_steps": -1}, "warmup_steps: -1 received"),
        ({"decay_ratio": 1.5}, "decay_ratio: 1.5 received"),
        ({"decay_steps": 0}, "decay_steps: 0 received"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        learning_rate(**{"step": 0, "total_steps": 10, "schedule": "constant", **arguments})


def test_an_unknown_schedule_is_refused_by_name() -> None:
    # With the jaxtyping import hook on, the type checker refuses the literal before the function does.
    with pytest.raises((ValueError, TypeError), match="schedule"):
        learning_rate(0, 10, "step")
