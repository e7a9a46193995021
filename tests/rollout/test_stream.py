"""Which groups a step trains on: every prompt once, none too old, and the slow ones as often as the quick ones."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr1.models.ranks import Ranks
from mmsr1.rollout.stream import Place, Places, RolloutStream, StreamSpec, left_over
from mmsr1.types import Episode, Example, Group, Reward, Sampled, Segment, Timings
from tests.rollout import virtual_time


def group(place: Place, lengths: Sequence[int] = (1, 1), equal: bool = False) -> Group:
    """A finished group whose episodes sampled so many tokens; its example is named after its place."""
    name = f"{place.step}.{place.index}"
    episodes = tuple(
        Episode(
            name,
            rollout,
            (Segment("sampled", (7,) * length, False, (), Sampled((-1.0,) * length, 0)),),
            (),
            (),
            "answered",
            0,
            Timings(0.0, 0.0, 0.0),
        )
        for rollout, length in enumerate(lengths)
    )
    advantages = tuple(0.0 if equal else (-1.0) ** rollout for rollout in range(len(lengths)))
    rewards = tuple(Reward(advantage, {}) for advantage in advantages)
    example = Example(name, "?", (), "a", (), "free", "test")
    return Group(example, episodes, rewards, advantages, (True,) * len(lengths))


Latency = Callable[[Place], float]


def launcher(latency: Latency, make: Callable[[Place], Group] = group) -> Any:
    async def one(place: Place) -> Group:
        await asyncio.sleep(latency(place))
        return make(place)

    return lambda places: [asyncio.get_running_loop().create_task(one(place)) for place in places]


def names_of(places: Sequence[Place]) -> list[str]:
    return [f"{place.step}.{place.index}" for place in places]


def names(groups: Sequence[Group]) -> list[str]:
    return [one.example.id for one in groups]


async def steps_of(stream: RolloutStream, steps: int, training_s: float = 0.0, ahead: int = 0) -> list[list[Group]]:
    """What each of `steps` steps takes; `ahead` as with overlap: prepared with the weights before last."""
    taken = []
    for step in range(steps):
        await stream.prepare(step, max(0, step - ahead))
        taken.append(stream.take())
        await asyncio.sleep(training_s)
    return taken


def drawn(seed: int, sigma: float = 1.0) -> Latency:
    return lambda place: random.Random(f"{seed}-{place}").lognormvariate(0, sigma)


def test_without_options_a_step_is_its_own_prompts_in_their_order():
    stream = RolloutStream(launcher(drawn(0)), Places(4, steps=3), StreamSpec(quota=4))
    taken = virtual_time.run(steps_of(stream, 3))
    assert [names(groups) for groups in taken] == [[f"{step}.{index}" for index in range(4)] for step in range(3)]
    assert stream.state().open == () and stream.state().next == Place(3, 0)


def test_the_slowest_groups_are_left_to_the_next_step_and_then_waited_for():
    slow = {Place(0, 1): 10.0, Place(0, 4): 60.0}
    stream = RolloutStream(
        launcher(lambda place: slow.get(place, 1.0)), Places(4), StreamSpec(quota=4, extra=2, max_staleness=1)
    )

    async def main() -> tuple[list[list[str]], list[float]]:
        taken, times = [], []
        for step in range(3):
            await stream.prepare(step, step)
            taken.append(names(stream.take()))
            times.append(asyncio.get_running_loop().time())
        return taken, times

    taken, times = virtual_time.run(main())
    # The order goes on over the steps: places 0.0 to 0.3, 1.0 and 1.1 start first.
    assert taken[0] == ["0.0", "0.2", "0.3", "1.0"] and times[0] == 1
    # 0.1 started with weights 0: it may not be later than step 1, which waits for it.
    assert taken[1][:2] == ["0.1", "1.1"] and times[1] == 10
    assert len(set(sum(taken, []))) == 12


@settings(deadline=None, max_examples=60)
@given(
    quota=st.integers(1, 6),
    share=st.integers(0, 6),
    staleness=st.integers(0, 3),
    overlap=st.integers(0, 1),
    seed=st.integers(0, 10**6),
    training_s=st.sampled_from([0.0, 0.5, 3.0]),
    equal=st.sampled_from([0.0, 0.4]),
)
def test_nothing_is_lost_doubled_or_too_old(quota, share, staleness, overlap, seed, training_s, equal):
    extra, limit = (min(share, quota), 1 + staleness) if share else (0, staleness)
    limit += overlap
    steps, started = 12, {}

    def make(place: Place) -> Group:
        return group(place, equal=random.Random(f"e{seed}-{place}").random() < equal)

    launch = launcher(drawn(seed, 1.5), make)
    spec = StreamSpec(quota, extra, refill=equal > 0, max_refills=quota, max_staleness=limit)
    places = Places(quota, steps if equal == 0 else None)

    async def main() -> list[list[Group]]:
        taken = []
        version = 0

        def starting(some: Sequence[Place]) -> Any:
            started.update(dict.fromkeys(names_of(some), version))
            return launch(some)

        stream = RolloutStream(starting, places, spec)
        for step in range(steps):
            version = max(0, step - overlap)
            await stream.prepare(step, version)
            taken.append(stream.take())
            for name in names(taken[-1]):
                assert 0 <= step - started[name] <= limit
            await asyncio.sleep(training_s)
        open_places = stream.state().open
        rest = names_of(open_places) + names([g for *_, g in stream.state().ready])
        assert sorted(sum(map(names, taken), []) + rest) == sorted(started)
        return taken

    taken = virtual_time.run(main())
    everything = Counter(sum(map(names, taken), []))
    assert max(everything.values()) == 1
    if equal == 0:  # the order ends, and all of it was trained on
        assert len(everything) == steps * quota and all(len(groups) == quota for groups in taken)
    for groups in taken:
        useful = [one for one in groups if not one.all_equal]
        assert len(useful) <= quota


def test_groups_without_gradient_are_replaced_and_still_handed_over():
    def make(place: Place) -> Group:
        return group(place, equal=place.index % 2 == 0)

    stream = RolloutStream(launcher(drawn(1), make), Places(4), StreamSpec(4, refill=True, max_refills=8))
    (first, second) = virtual_time.run(steps_of(stream, 2))
    assert [one.all_equal for one in first] == [False] * 4 + [True] * 4
    assert names(first) == ["0.1", "0.3", "1.1", "1.3", *sorted(names(first[4:]), key=names(first).index)]
    assert sorted(names(first) + names(second)) == sorted(f"{s}.{i}" for s in range(4) for i in range(4))


def test_refilling_ends_where_nothing_carries_a_gradient():
    stream = RolloutStream(
        launcher(drawn(1), lambda place: group(place, equal=True)), Places(4), StreamSpec(4, refill=True, max_refills=6)
    )
    (only,) = virtual_time.run(steps_of(stream, 1))
    assert len(only) == 4 + 6 and all(one.all_equal for one in only)


def test_a_group_that_fails_fails_the_step():
    async def broken(place: Place) -> Group:
        raise ZeroDivisionError

    def launch(places: Sequence[Place]) -> Any:
        return [asyncio.get_running_loop().create_task(broken(place)) for place in places]

    with pytest.raises(ZeroDivisionError):
        virtual_time.run(steps_of(RolloutStream(launch, Places(2), StreamSpec(2)), 1))


@pytest.mark.parametrize("spec", [{"extra": 1}, {"extra": 5, "max_staleness": 1}, {"extra": -1}])
def test_what_could_come_too_late_is_refused(spec: dict[str, int]):
    with pytest.raises(ValueError, match="^extra: "):
        StreamSpec(4, **spec)


def same_distribution(one: Sequence[float], other: Sequence[float]) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test (asymptotic: Smirnov 1948)."""
    values = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, other)]
    distance = float(np.abs(below[0] - below[1]).max())
    scaled = distance * math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    if scaled < 0.2:  # the series needs many terms there, and is 1 to twelve digits
        return 1.0
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101)))


def lengths_tied_to_latency(place: Place) -> tuple[float, list[int]]:
    """Seconds and the episodes' lengths of a group: a slow group is a long one."""
    draw = random.Random(f"tied-{place}")
    seconds = draw.lognormvariate(0, 1)
    return seconds, [max(1, round(20 * seconds * draw.lognormvariate(0, 0.3))) for _ in range(8)]


@pytest.mark.parametrize("refill", [False, True])
def test_trained_lengths_are_distributed_as_if_nothing_had_been_left_to_later(refill: bool):
    """20,000 episodes, 16 groups of 8 a step, half as many more on their way."""
    steps, started = 20_000 // (16 * 8), []

    def make(place: Place) -> Group:
        equal = refill and random.Random(f"equal-{place}").random() < 0.3
        return group(place, lengths_tied_to_latency(place)[1], equal)

    launch = launcher(lambda place: lengths_tied_to_latency(place)[0], make)
    spec = StreamSpec(16, extra=8, refill=refill, max_refills=16, max_staleness=1)
    # An order without an end, so that some are still on their way when the last step is done.
    stream = RolloutStream(lambda places: started.extend(places) or launch(places), Places(16), spec)
    taken = virtual_time.run(steps_of(stream, steps, training_s=0.1))
    trained = [e.sampled_tokens for groups in taken for one in groups if not one.all_equal for e in one.episodes_G]
    drawn_lengths = {place: lengths_tied_to_latency(place) for place in started}
    unfiltered = [length for _, lengths in drawn_lengths.values() for length in lengths]
    assert len(trained) == steps * 16 * 8 < len(unfiltered)
    assert same_distribution(trained, unfiltered) > 0.01
    # Without the slowest third of each step, which is what a cut that throws away would leave, the test objects.
    quick = []
    for number in range(0, len(started) - 24, 24):
        shown = sorted(started[number : number + 24], key=lambda place: drawn_lengths[place][0])[:16]
        quick += [length for place in shown for length in drawn_lengths[place][1]]
    assert same_distribution(quick, unfiltered) < 1e-6
    consumed = Counter(sum(map(names, taken), []))
    waiting = names([one for *_, one in stream.state().ready]) + names_of(stream.state().open)
    assert consumed + Counter(waiting) == Counter(names_of(started))


def test_an_order_with_an_end_is_trained_on_to_the_last_prompt():
    spec = StreamSpec(16, extra=8, max_staleness=1)
    stream = RolloutStream(launcher(drawn(4)), Places(16, steps=30), spec)
    taken = virtual_time.run(steps_of(stream, 30, training_s=0.1))
    assert Counter(sum(map(names, taken), [])) == Counter(
        f"{step}.{index}" for step in range(30) for index in range(16)
    )


@pytest.mark.parametrize(("ranks", "after"), [(1, 1), (2, 1), (1, 3), (3, 2), (2, 2)])
@pytest.mark.parametrize("refill", [False, True])
def test_another_number_of_ranks_goes_on_without_losing_or_doubling(ranks: int, after: int, refill: bool):
    per_step = 12
    seen: list[str] = []

    def make(place: Place) -> Group:
        return group(place, equal=refill and random.Random(f"{place}").random() < 0.3)

    def spec(size: int) -> StreamSpec:
        quota = per_step // size
        return StreamSpec(quota, extra=quota // 2, refill=refill, max_refills=quota, max_staleness=1)

    async def run(streams: Sequence[RolloutStream], steps: range) -> None:
        for step in steps:
            for stream in streams:
                await stream.prepare(step, step)
                seen.extend(names(stream.take()))

    async def main() -> list[str]:
        before = [
            RolloutStream(launcher(drawn(2), make), Places(per_step, None, r, ranks), spec(ranks)) for r in range(ranks)
        ]
        await run(before, range(3))
        states = [stream.state() for stream in before]
        first, left = left_over(states, per_step)
        ready = [one for state in states for one in state.ready]
        assert all(not state.dropped for state in states)
        resumed = []
        for rank in range(after):
            places = Places(per_step, None, rank, after, first, left)
            mine = Ranks(rank, after).mine(ready)
            resumed.append(RolloutStream(launcher(drawn(3), make), places, spec(after), mine))
        await run(resumed, range(3, 9))
        still = [stream.state() for stream in resumed]
        first, left = left_over(still, per_step)
        waiting = names([one for state in still for *_, one in state.ready]) + names_of(left)
        assert sorted(seen + waiting) == sorted(f"{step}.{index}" for step in range(first) for index in range(per_step))
        return seen

    found = virtual_time.run(main())
    assert len(found) == len(set(found))
