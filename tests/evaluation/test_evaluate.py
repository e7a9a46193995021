"""evaluate.py through the real episode loop: workflows, resuming, a model behind an API, a judge that was away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from werkzeug import Request, Response

from evaluate import evaluate, main, table
from mmsr1 import cli
from mmsr1.assembly.chosen import with_engine
from mmsr1.config import ConfigError
from mmsr1.config.evaluate import EvaluateConfig, register
from mmsr1.data.emblem.store import EmblemStore
from mmsr1.data.formats import load_examples
from mmsr1.evaluation.compare import read_run
from mmsr1.evaluation.lines import Lines
from mmsr1.evaluation.outcome import outcome_of
from mmsr1.run_directory import RunDirectory
from tests.evaluation.benchmarks.published_files import fvqa_row, parquet

INFOSEEK = Path(__file__).parents[3] / "shared" / "data" / "infoseek_mini.parquet"


def composed(folder: Path, *overrides: str) -> EvaluateConfig:
    register()
    raw = cli.composed(
        with_engine([f"data.cache_dir={folder}/data", f"tools.cache_dir={folder}/cache", *overrides]), "evaluate"
    )
    config: Any = cli.checked(raw)
    return config


def settings(store: EmblemStore, *more: str) -> list[str]:
    return ["rollout=transformers", f"data.root={store.root.parent}", "data.train_size=12", *more]


def evaluated(folder: Path, *overrides: str) -> dict[str, Any]:
    main(composed(folder, *overrides), folder / "run")
    return RunDirectory(folder / "run").read_summary()


def kept(folder: Path) -> Lines:
    """The lines of the run, as an evaluation that goes on with it reads them."""
    run = RunDirectory(folder / "run")
    return Lines(run, {record["example_id"]: record["content"] for record in run.read_episodes("eval", 0)})


def test_the_policy_chooses_and_every_episode_is_on_disk(store: EmblemStore, tmp_path: Path) -> None:
    told = evaluated(tmp_path, *settings(store, "limit=10", "counterfactual=2"))
    run = RunDirectory(tmp_path / "run")
    assert (told["benchmark"], told["workflow"], told["policy"]) == ("emblem_heldout", "on_demand", "start")
    assert told["asked"] == told["answered"] == 10 == told["final"]["questions"]
    records = run.read_episodes("eval", 0)
    assert len(records) == 10 and run.read_run()["status"] == "finished"
    assert told["final"]["accuracy"] == sum(r["reward"]["parts"]["accuracy"] for r in records) / 10
    assert len(told["final"]["accuracy_ci95"]) == 2
    branches = (tmp_path / "run" / "counterfactual.jsonl").read_text().splitlines()
    assert len(branches) == 10 == told["counterfactual"]["questions"]
    assert 0 <= told["counterfactual"]["label_agreement"] <= 1


@pytest.mark.parametrize(
    ("workflow", "calls"), [("direct", set()), ("rag", {"image_search", "text_search"})], ids=["direct", "rag"]
)
def test_a_workflow_says_what_the_turns_do(store: EmblemStore, tmp_path: Path, workflow: str, calls: set[str]) -> None:
    # Of questions about facts: "what is its name" leaves a text search nothing to ask.
    evaluated(tmp_path, *settings(store, "limit=12", f"workflow={workflow}"))
    records = RunDirectory(tmp_path / "run").read_episodes("eval", 0)
    asked = [record for record in records if "place has this flag" not in record["question"]]
    asked = [record for record in asked if "name the place" not in record["question"]]
    assert asked
    for record in asked:
        assert {call["tool"] for call in record["calls"]} == calls


def test_a_killed_evaluation_goes_on_where_it_was(store: EmblemStore, tmp_path: Path) -> None:
    """What is on disk stays; an unfinished line and a lost episode are asked again."""
    evaluated(tmp_path, *settings(store, "limit=8", "rollout.temperature=0"))
    file = tmp_path / "run" / "episodes" / "eval-0.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    lost = json.loads(whole[2]) | {"trained": False}
    left = [*whole[:2], json.dumps(lost).encode() + b"\n", whole[3]]
    file.write_bytes(b"".join(left) + whole[4][:50])
    config = composed(tmp_path, *settings(store, "limit=8", "rollout.temperature=0", f"resume={tmp_path / 'run'}"))
    main(config, tmp_path / "run")
    assert file.read_bytes().startswith(b"".join(left))
    again = {record["example_id"]: record["turns"] for record in kept(tmp_path)}
    assert again == {record["example_id"]: record["turns"] for record in map(json.loads, whole)}
    told = RunDirectory(tmp_path / "run").read_summary()
    assert told["answered"] == 8 and told["final"]["failed_share"] == 0.0


def test_a_policy_that_is_asked_in_other_words_than_it_was_trained_in_is_remarked(
    store: EmblemStore, tmp_path: Path, capsys: Any
) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "config.yaml").write_text("rollout: {prompts: on_demand}\n")
    shutil.copytree("mmsr1/models/starting_policy", trained / "policy")
    evaluated(tmp_path, *settings(store, f"policy={trained}", "limit=1"))
    assert "was trained with rollout.prompts=on_demand; here it is emblem" in capsys.readouterr().err


def test_another_question_is_not_gone_on_with(store: EmblemStore, tmp_path: Path) -> None:
    evaluated(tmp_path, *settings(store, "limit=2"))
    config = composed(tmp_path, *settings(store, "limit=2", "workflow=rag", f"resume={tmp_path / 'run'}"))
    with pytest.raises(ConfigError, match="was begun with"):
        main(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["policy=nowhere/at/all/of/it"], "policy=nowhere/at/all/of/it: holds no policy"),
        (["policy=tests"], "policy=tests: holds no policy"),
        (["policy=start", "rollout=openai", "rollout.api.url=http://x"], "goes with rollout=openai"),
        (["benchmark=infoseek"], "benchmark.path=None: give"),
        (["benchmark=infoseek", "benchmark.path=README.md"], "benchmark.path"),
        (["judge.labels=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_mistake_is_told_before_anything_is_asked(
    store: EmblemStore, tmp_path: Path, more: list[str], told: str
) -> None:
    overrides = [*settings(store), *more] if "rollout=openai" not in more else [*settings(store)[1:], *more]
    with pytest.raises((ConfigError, ValueError), match=told):
        evaluate(composed(tmp_path, *overrides), RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["repeats=2", "rollout.temperature=0"], "repeats=2: draws the same episode again"),
        (["workflow=rag", "rollout.text_searches=0"], "needs rollout.image_searches and rollout.text_searches"),
        (["workflow=rag", "rollout.turns=2"], "has more turns than that"),
        (["benchmark.split=test"], "must be one of heldout, shifted"),
        (["limit=-1"], "limit=-1: must be 0 or more"),
        (["+benchmark.paht=x"], "there is no such key; did you mean path?"),
    ],
)
def test_a_value_that_makes_no_sense_is_told_at_composition(tmp_path: Path, more: list[str], told: str) -> None:
    with pytest.raises(cli.USER_ERRORS) as error:
        composed(tmp_path, *more)
    assert told in cli.explain(error.value)


class Vlm:
    """A chat API for which every picture shows the Dulmen tower; as a judge it can be away."""

    def __init__(self, httpserver: Any) -> None:
        self.asked, self.judged, self.away = 0, 0, True
        self.url = httpserver.url_for("")
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(self._answer)

    def _answer(self, request: Request) -> Response:
        messages = json.loads(request.data)["messages"]
        if "verdict" in json.dumps(messages[0]):
            self.judged += 1
            return Response("busy", 503) if self.away else self._say('{"verdict": "INCORRECT"}')
        self.asked += 1
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        rest = {"<answer>": "Dulmen</answer>", "<search>": "<img></search>", "<text_search>": "Dulmen</text_search>"}
        going_on = next((text for tag, text in rest.items() if str(begun).endswith(tag)), None)
        return self._say(going_on or "<reason>I know it</reason><answer>Dulmen</answer>")

    def _say(self, text: str) -> Response:
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return Response(json.dumps({"choices": [choice]}), content_type="application/json")


def api(vlm: Vlm, *more: str) -> list[str]:
    return [
        "policy=openai",
        f"rollout.api.url={vlm.url}",
        "rollout.api.options.model=vlm-7b",
        "rollout.api.options.continues=true",
        "rollout.api.rate_per_s=1000",
        *more,
    ]


@pytest.mark.skipif(not INFOSEEK.is_file(), reason="no ../shared/data here")
@pytest.mark.parametrize("workflow", ["direct", "rag", "on_demand"])
def test_real_questions_and_a_model_behind_an_api(httpserver: Any, tmp_path: Path, workflow: str) -> None:
    vlm = Vlm(httpserver)
    asked = api(vlm, "benchmark=infoseek", f"benchmark.path={INFOSEEK}", f"workflow={workflow}")
    told = evaluated(tmp_path, *asked)
    assert told["answered"] == told["asked"] == 5 and told["policy"] == "vlm-7b" and told["temperature"] == 0.0
    expected = {"direct": 0.0, "rag": 2.0, "on_demand": 0.0}[workflow]
    assert told["final"]["calls_per_question"] == expected
    assert any("5" in line and "2000" in line.replace(",", "") for line in told["remarks"]), "not the whole set"
    prompts = (RunDirectory(tmp_path / "run").path / "config.yaml").read_text()
    assert OmegaConf.create(prompts).workflow.name == workflow


@pytest.mark.skipif(not INFOSEEK.is_file(), reason="no ../shared/data here")
def test_a_judge_that_was_away_is_asked_again_and_nothing_counts_as_wrong(httpserver: Any, tmp_path: Path) -> None:
    vlm = Vlm(httpserver)
    judge = ["judge=openai", f"judge.api.url={vlm.url}", "judge.api.options.model=j", "judge.api.attempts=1"]
    asked = api(vlm, "benchmark=infoseek", f"benchmark.path={INFOSEEK}", *judge, "judge.api.rate_per_s=1000")
    asked += ["repeats=2", "rollout.temperature=1.0"]
    told = evaluated(tmp_path, *asked)
    assert told["judge"]["judge_outage_rate"] == 1.0 and "score_judge" not in told["final"]
    assert "judge_accuracy" not in told["judge"]
    vlm.away, before = False, vlm.asked
    main(composed(tmp_path, *asked, f"resume={tmp_path / 'run'}"), tmp_path / "run")
    told = RunDirectory(tmp_path / "run").read_summary()
    assert vlm.asked == before, "no question is asked again"
    assert told["judge"]["judge_outage_rate"] == 0.0 and told["final"]["score_judge"] == 0.0
    assert told["judge"]["model"] == "j"


def test_a_lost_episode_takes_no_place_of_one_that_says_something(store: EmblemStore, tmp_path: Path) -> None:
    evaluated(tmp_path, *settings(store, "limit=2"))
    lines = kept(tmp_path)
    (first, _), before = list(lines), dict(lines.outcomes)
    lost = first | {"trained": False}
    lines.add(lost, outcome_of(lost), ())
    assert lines.outcomes == before == kept(tmp_path).outcomes
    assert [line["trained"] for line in kept(tmp_path)] == [True, True]


def test_a_damaged_line_is_told_and_its_question_asked_again(store: EmblemStore, tmp_path: Path, capsys: Any) -> None:
    evaluated(tmp_path, *settings(store, "limit=3", "rollout.temperature=0"))
    file = tmp_path / "run" / "episodes" / "eval-0.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(whole[0] + whole[1][:40] + b"\n" + b"[1]\n" + whole[2])
    resume = f"resume={tmp_path / 'run'}"
    main(composed(tmp_path, *settings(store, "limit=3", "rollout.temperature=0", resume)), tmp_path / "run")
    told = RunDirectory(tmp_path / "run").read_summary()
    assert (told["answered"], told["set_aside"], told["final"]["episodes"]) == (3, 2, 3)
    assert json.loads(file.read_bytes().splitlines()[-1])["turns"] == json.loads(whole[1])["turns"]
    assert "2 lines of earlier answers are damaged" in capsys.readouterr().err
    assert (tmp_path / "run" / "eval.before.jsonl").read_bytes() == whole[1][:40] + b"\n" + b"[1]\n"


def test_of_several_draws_only_the_lost_one_is_asked_again(store: EmblemStore, tmp_path: Path) -> None:
    asked = settings(store, "limit=2", "repeats=3", "rollout.temperature=1.0")
    before = evaluated(tmp_path, *asked)
    file = tmp_path / "run" / "episodes" / "eval-0.jsonl"
    whole = [json.loads(line) for line in file.read_bytes().splitlines()]
    gone = next(number for number, line in enumerate(whole) if line["rollout"] == 1)
    rows = [line | {"trained": number != gone} for number, line in enumerate(whole)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(composed(tmp_path, *asked, f"resume={tmp_path / 'run'}"), tmp_path / "run")
    lines, told = file.read_bytes().splitlines(), RunDirectory(tmp_path / "run").read_summary()
    assert len(lines) == 7 and (again := json.loads(lines[-1]))["rollout"] == 1
    assert again["example_id"] == whole[gone]["example_id"] and told["final"]["pass_at_3"] is not None
    assert told["seconds_answering"] > before["seconds_answering"], "that of both processes"
    calls = [
        sum(row["calls"] for name, row in one["tools"].items() if name.endswith("_search")) for one in (before, told)
    ]
    assert calls[1] - calls[0] == len([call for call in again["calls"] if call["status"] != "malformed_call"])


def test_an_answer_to_a_row_that_was_changed_since_does_not_count(httpserver: Any, tmp_path: Path) -> None:
    file, vlm = tmp_path / "fvqa_test.parquet", Vlm(httpserver)
    asked = api(vlm, "benchmark=fvqa_test", f"benchmark.path={file}", "counterfactual=1")
    asked += [f"benchmark.lock={tmp_path}/locks"]
    parquet(file, [fvqa_row(data_id="a"), fvqa_row(data_id="b"), fvqa_row(data_id="c")])
    before = evaluated(tmp_path, *asked)
    assert before["answered"] == 3 and before["branches_missing"] == 0
    changed = fvqa_row(data_id="b", prompt=[{"role": "user", "content": "<image>Which tower is this?"}])
    parquet(file, [fvqa_row(data_id="a"), changed])
    main(composed(tmp_path, *asked, f"resume={tmp_path / 'run'}"), tmp_path / "run")
    told = RunDirectory(tmp_path / "run").read_summary()
    assert (told["asked"], told["answered"], told["final"]["episodes"]) == (2, 2, 2)
    assert told["counterfactual"]["questions"] == 2 and told["branches_missing"] == 0
    lines = RunDirectory(tmp_path / "run").read_episodes("eval", 0)
    assert [line["example_id"] for line in lines][1:] == ["b"] and "Which tower" in lines[1]["question"]
    assert len(read_run(tmp_path / "run").outcomes) == 2, "compare and the report see what counts"
    assert told["set_aside"] == 4, "two answers and two lines of forced ways"
    (tmp_path / "run" / "counterfactual.jsonl").write_text("{}\n[\n")
    main(composed(tmp_path, *asked, f"resume={tmp_path / 'run'}"), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").read_summary()["counterfactual"]["questions"] == 2


def test_an_outage_leaves_no_figure_rather_than_a_zero(httpserver: Any, tmp_path: Path, capsys: Any) -> None:
    httpserver.expect_request("/v1/chat/completions").respond_with_data("busy", 503)
    file = parquet(tmp_path / "fvqa_test.parquet", [fvqa_row()])
    url = [f"rollout.api.url={httpserver.url_for('')}", "rollout.api.options.model=m", "rollout.api.attempts=1"]
    with pytest.raises(SystemExit, match="1"):
        evaluated(tmp_path, "policy=openai", *url, "benchmark=fvqa_test", f"benchmark.path={file}")
    run = RunDirectory(tmp_path / "run")
    assert run.read_run()["status"] == "failed" and "openai_chat failed 1 times" in run.read_run()["reason"]
    told = run.read_summary()
    assert told["final"] == {"questions": 0, "episodes": 1, "tool_failure_rate": 0.0, "failed_share": 1.0}
    assert "no episode counts" in capsys.readouterr().err
    assert "no episode counts" in (tmp_path / "run" / "report.html").read_text()


def test_several_evaluations_make_a_table(store: EmblemStore, tmp_path: Path, capsys: Any) -> None:
    for workflow in ("direct", "on_demand"):
        main(composed(tmp_path, *settings(store, "limit=4", f"workflow={workflow}")), tmp_path / "all" / workflow)
    table(tmp_path / "all")
    written = Path(capsys.readouterr().out.strip().removeprefix("table: ")).read_text()
    assert written.count("| emblem_heldout |") == 2 and "MMSearch-R1-7B" in written


def test_the_shifted_split_is_a_benchmark_of_its_own(store: EmblemStore, tmp_path: Path) -> None:
    told = evaluated(tmp_path, *settings(store, "benchmark=emblem_shifted", "limit=4"))
    shifted, _ = load_examples(store.split("shifted"))
    ids = {record["example_id"] for record in RunDirectory(tmp_path / "run").read_episodes("eval", 0)}
    assert told["benchmark"] == "emblem_shifted" and ids <= {example.id for example in shifted} and len(ids) == 4
