"""The benchmarks that set rollouts beside other systems, without those systems and at sizes that take seconds."""

import asyncio
import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from benchmarks import _peer, engine, grpo_step, rollout_latency, weight_sync
from benchmarks._forced import ForcedEngine, SlowSearch
from benchmarks._latency import critical_path, draw, scaled, total, waves
from benchmarks._policy import as_task, questions, read_policy, tokenizer, write_policy
from benchmarks._process import Part
from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.protocol import Answer, TextSearch, parse_turn

CALLS = ((1.0, 4.0), (3.0,), (2.0, 1.0, 1.0))


@pytest.fixture
def no_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    def python() -> Path:
        raise _peer.PeerError("TRL cannot be installed here: no index")

    monkeypatch.setattr(_peer, "python", python)


def program(tmp_path: Path, body: str) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text("from benchmarks._process import Channel\nchannel = Channel()\n" + textwrap.dedent(body))
    return [sys.executable, "-c", f"exec(open({str(file)!r}).read())"]


def test_what_the_draws_allow():
    assert total(CALLS) == 12
    assert waves(CALLS) == 3 + 4 + 1  # the slowest of the first calls, of the second, of the third
    assert critical_path(CALLS, {1: 0.5, 2: 0.25, 3: 2.0}) == 6.0  # the last: 4 s of calls, 2 s of its own sampling
    assert critical_path(CALLS, {1: 0.5, 2: 0.25, 3: 1.0}) == 5.25
    assert scaled(CALLS, 0.5)[0] == (0.5, 2.0)


def test_draws_are_log_normal_around_their_median_and_fixed_by_the_seed():
    many = draw(2000, 1, 3, seed=0)
    assert many == draw(2000, 1, 3, seed=0) != draw(2000, 1, 3, seed=1)
    logs = torch.tensor([seconds for one in many for seconds in one]).log()
    assert logs.mean().item() == pytest.approx(0, abs=0.05) and logs.std().item() == pytest.approx(1, abs=0.05)
    assert {len(one) for one in many} == {1, 2, 3}


def test_a_forced_engine_samples_as_many_tokens_as_it_then_says():
    words = tokenizer()
    real = ScriptedEngine(lambda prompt, sampling: "x" * 9, words)
    forced = ForcedEngine(real)
    forced.turns = {5: (1, 2, 3), 6: tuple(range(12))}
    sampling = Sampling(1.0, 1.0, max_tokens=99, seed=5)
    said = asyncio.run(forced.generate(TokenPrompt((7,), ()), sampling))
    assert isinstance(said, Completion) and (said.token_ids, said.finish) == ((1, 2, 3), "stop")
    assert real.calls[0][1].max_tokens == 3 and len(said.logprobs) == 3
    with pytest.raises(RuntimeError, match="9 tokens sampled where the script has 12"):
        asyncio.run(forced.generate(TokenPrompt((7,), ()), Sampling(1.0, 1.0, max_tokens=99, seed=6)))
    broken = ForcedEngine(ScriptedEngine(lambda prompt, sampling: EngineFailure("gone"), words))
    broken.turns = forced.turns
    assert asyncio.run(broken.generate(TokenPrompt((7,), ()), sampling)) == EngineFailure("gone")


def test_the_scripts_are_turns_of_the_protocol_that_fit():
    words = tokenizer()
    turn, trl = (one.format(query="31 2") for one in (rollout_latency.TURN, rollout_latency.TRL_TURN))
    assert parse_turn(turn) == TextSearch("31 2") and parse_turn(rollout_latency.ANSWER) == Answer("it")
    assert json.loads(trl.removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"] == {"query": "31 2"}
    assert all(len(words.encode(t)) <= rollout_latency.TURN_TOKENS for t in (turn, trl, rollout_latency.ANSWER))


def test_no_run_has_the_pictures_of_another(tmp_path):
    first, second = questions(2, 0), questions(2, 1)
    assert len({example.images[0].digest for example in (*first, *second)}) == 4
    rows = as_task(first, tmp_path)
    assert Path(rows[1]["image"]).read_bytes() == first[1].images[0].data


def test_a_part_answers_whatever_its_libraries_print(tmp_path):
    body = """
    while (task := channel.receive()) is not None:
        print("a library speaks", flush=True)
        channel.send(task["number"] + 1)
    """
    with Part(program(tmp_path, body)) as part:
        assert [part.ask(number=number) for number in (1, 2)] == [2, 3]
    with (
        Part(program(tmp_path, "channel.receive()\nraise SystemExit(3)")) as part,
        pytest.raises(RuntimeError, match="ended with status 3"),
    ):
        part.ask(number=1)


def test_a_complete_environment_of_the_same_versions_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(_peer, "_run", lambda *command: pytest.fail(f"{command}"))
    (tmp_path / "ready.json").write_text(json.dumps([f"trl=={_peer.TRL}.*", *_peer._ours()]))
    assert _peer.python(tmp_path) == tmp_path / "bin" / "python"
    assert f"torch=={torch.__version__}" in _peer._ours()


def test_an_environment_that_cannot_be_made_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(_peer.PeerError, match=r"^TRL 1.16 cannot be installed here: ERROR: .*trl.*") as found:
        _peer.python(tmp_path / "trl")
    assert "\n" not in str(found.value) and not (tmp_path / "trl" / "ready.json").exists()


def test_weights_are_synced_and_copied_in_turns():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7.0])}
    scripted = ScriptedEngine((), tokenizer())
    times = asyncio.run(weight_sync.timed(scripted, tensors, repeats=2))
    assert scripted.versions == [0, 1, 2] and {name: len(t) for name, t in times.items()} == dict.fromkeys(times, 3)
    assert weight_sync.copied(list(tensors.values())).tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_scripted_episodes_over_a_real_engine(tmp_path, monkeypatch):
    """Free and in lockstep, every episode makes its calls, and the engine samples all tokens of all turns."""
    write_policy(tmp_path)
    task = {"policy": str(tmp_path), "rollouts": 2, "tokens": 48, "passage": "here"}
    ours = rollout_latency.Ours({**task, "turn": rollout_latency.TURN, "answer": rollout_latency.ANSWER})
    real, sampled = ours.worker.engine.engine, []

    async def counting(prompt, sampling, generate=real.generate):
        completion = await generate(prompt, sampling)
        sampled.append(len(completion.token_ids))
        return completion

    monkeypatch.setattr(real, "generate", counting)
    calls = scaled((*CALLS, (1.0,)), 0.001)
    try:
        for synchronous in (False, True):
            assert ours.run(calls, run=0, synchronous=synchronous) > 0
            assert sampled == [48] * sum(len(one) + 1 for one in calls)
            sampled.clear()
        monkeypatch.setattr(SlowSearch, "__call__", failing)
        with pytest.raises(RuntimeError, match="calls that were made"):
            ours.run(calls, run=1)
    finally:
        ours.worker.close()
    assert len(read_policy(tmp_path).tokenizer) == len(tokenizer())


async def failing(self, query):
    from mmsr1.types import ToolResult

    return ToolResult("infrastructure_error")


def test_figures_of_a_median():
    alone, first = {1: 0.5, 2: 1.0, 3: 1.5}, tuple(one[:1] for one in CALLS)
    at_zero = {"ours": 2.0, "sync": 3.0, "one_ours": 1.0, "one_trl": 1.5}
    found = {"ours": 7.5, "sync": 12.0, "one_ours": 4.0, "one_trl": 10.0}
    row = rollout_latency._figures(found, at_zero, CALLS, first, 1.0, alone)
    assert row["bound_s"] == 6.0 and row["over_bound"] == 1.25
    assert row["speedup_allowed"] == (8 + 3) / 6 and row["speedup_share"] == pytest.approx(1.6 / (11 / 6))
    assert row["trl_speedup_allowed"] == 6 / 3.5 and row["trl_share"] == pytest.approx(2.5 / (6 / 3.5))
    nothing = rollout_latency._figures({**at_zero, "one_trl": None}, at_zero, CALLS, first, 0.0, alone)
    assert (nothing["bound_s"], nothing["over_bound"], nothing["speedup_share"]) == (2.0, 1.0, 1.0)
    assert nothing["trl_speedup"] is nothing["trl_speedup_allowed"] is nothing["trl_share"] is None


def test_the_loop_and_vllm_offline_sample_the_same_turns(tmp_path, monkeypatch):
    for name, value in {"PROMPTS": 2, "ROLLOUTS": 2, "REPEATS": 1}.items():
        monkeypatch.setattr(engine, name, value)
    write_policy(tmp_path)
    figures = engine.beside("random", tmp_path)
    assert figures["random_same_turns"] == 1.0 and figures["random_tokens"] == 4 * engine.TOKENS["random"]
    rates = figures["random_ours_tokens_per_second"] / figures["random_vllm_tokens_per_second"]
    assert figures["random_ratio"] == pytest.approx(rates)


def test_a_grpo_step_trains_on_every_token_it_sampled(monkeypatch, capsys, no_trl):
    for name, value in {"PROMPTS": 2, "ROLLOUTS": 2, "TOKENS": 8, "STEPS": 1}.items():
        monkeypatch.setattr(grpo_step, name, value)
    figures = grpo_step.measure()
    assert figures["tokens_sampled"] == 2 * 2 * 8 < figures["tokens_in_all"]
    assert figures["ours_peak_mib"] > 100 and figures["speedup"] is None
    assert figures["trl_missing"] == "TRL cannot be installed here: no index"
    assert capsys.readouterr().err.count("TRL cannot be installed here") == 1
