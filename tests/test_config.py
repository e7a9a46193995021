"""Every shipped configuration composes against the schema, and a wrong value is told with its key and a remedy."""

from __future__ import annotations

import shutil
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmsr1 import cli
from mmsr1.cli import checked
from mmsr1.config import Config, ConfigError, GrpoConfig, SftConfig, evaluate, register

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
SCALES = sorted(file.stem for file in (CONF / "scale").glob("*.yaml"))
DEFAULTS = {
    key
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    if isinstance(entry, dict)
    for key in entry
}
STUDIES = sorted(file.stem for file in (CONF / "study").glob("*.yaml"))
EVALUATING = ("benchmark", "judge", "workflow")  # groups of conf/evaluate.yaml
OPTIONS = [
    f"{'' if folder.name in DEFAULTS else '+'}{folder.name}={file.stem}"
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", *EVALUATING)
    for file in sorted(folder.glob("*.yaml"))
]
# What some options cannot do without.
FILES = (
    "data.train_path=train.parquet",
    "data.val_path=val.parquet",
    "rollout.server.urls=[http://node7:8000]",
    "tools.text_search.url=http://node9:8000",
    "tools.summarizer.url=http://node9:8001",
    "tools.bundle=frozen",
    "rollout.api.url=http://node9:8002",
)


def composed(*overrides: str, conf: Path = CONF) -> Config:
    register()
    with initialize_config_dir(str(conf), version_base="1.3"):
        raw = compose("config", overrides=list(overrides))
    config: Any = OmegaConf.to_object(raw)
    return config


@cache
def defaults() -> Any:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config")


def changed(overrides: str) -> Config:
    """The defaults with a value, or some, changed: quicker than composing again."""
    config: Any = OmegaConf.to_object(OmegaConf.merge(defaults(), OmegaConf.from_dotlist(overrides.split())))
    return config


@cache
def shipped(*overrides: str) -> Config:
    return composed(*overrides, *FILES)


def check_complete(node: Any) -> None:
    """Every field is there, of its own class, and nothing that the schema does not know."""
    assert set(vars(node)) == {field.name for field in fields(node)}
    for value in vars(node).values():
        assert value != "???"
        if is_dataclass(value):
            check_complete(value)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_at_every_scale(experiment: str, scale: str) -> None:
    config = shipped(f"+experiment={experiment}", f"scale={scale}")
    check_complete(config)
    assert isinstance(config, Config) and config.name == experiment
    assert isinstance(config.algorithm, GrpoConfig | SftConfig)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_an_experiment_says_holds_at_every_scale(experiment: str, scale: str) -> None:
    check_said(CONF / "experiment" / f"{experiment}.yaml", shipped(f"+experiment={experiment}", f"scale={scale}"))


def check_said(file: Path, config: Config) -> None:
    """Every key of the file has its value in the configuration."""

    def check_leaves(said: Any, got: Any, at: str) -> None:
        for key, value in said.items():
            if isinstance(value, dict):
                check_leaves(value, getattr(got, key), f"{at}.{key}")
            else:
                assert getattr(got, key) == value, f"{at}.{key}"

    said = yaml.safe_load(file.read_text())
    said.pop("defaults", None)
    check_leaves(said, config, file.stem)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_arm_of_a_study_composes_at_every_scale(study: str, scale: str) -> None:
    """As the sweep runs it, with what is swept before the study. What the file of an arm says holds, and more than its
    name tells it from the others."""
    params = yaml.safe_load((CONF / "study" / f"{study}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert params.pop("seed") == "0,1,2"
    ((key, values),) = params.items()
    names, contents = set(), set()
    for value in values.split(","):
        config = shipped(f"{key}={value}", f"+study={study}", f"scale={scale}")
        check_complete(config)
        assert config.study == study
        if key == "+arm":
            check_said(CONF / "arm" / f"{value}.yaml", config)
        names.add(config.name)
        contents.add(repr(replace(config, name="")))
    assert len(names) == len(contents) == values.count(",") + 1
    if key == "+arm":
        assert {f"{file.parent.name}/{file.stem}" for file in (CONF / "arm" / study).glob("*.yaml")} == set(
            values.split(",")
        )


@pytest.mark.parametrize("scale", SCALES)
def test_an_arm_that_imitates_has_the_learning_rate_of_its_scale(scale: str) -> None:
    config = shipped("+study=sft_vs_rl", f"scale={scale}", "+arm=sft_vs_rl/sft_oracle_640")
    assert (config.algorithm.lr, config.algorithm.questions) == (6e-4 if scale == "laptop" else 1e-5, 640)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_group_option_composes(option: str) -> None:
    check_complete(shipped(option))


@pytest.mark.parametrize(
    "option", [f"{name}={file.stem}" for name in EVALUATING for file in sorted((CONF / name).glob("*.yaml"))]
)
def test_every_option_of_an_evaluation_composes(option: str) -> None:
    evaluate.register()
    config: Any = checked(cli.composed([option, "judge.api.url=http://node9:8000", "benchmark.path=FILE"], "evaluate"))
    check_complete(config)
    group, _, name = option.partition("=")
    assert group == "judge" or getattr(config, group).name in (name, name.removesuffix("_shifted"))


def test_the_question_of_ask_composes() -> None:
    evaluate.register()
    config: Any = checked(cli.composed(["image=photo.jpg", "question=what"], "ask"))
    check_complete(config)


def test_the_tests_above_see_the_shipped_files() -> None:
    assert set(SCALES) == {"laptop", "8xh100", "4x8h100"}
    assert {"grpo_balanced", "grpo_no_penalty", "grpo_unbalanced", "warmup"} <= set(EXPERIMENTS)
    assert {"model=tiny", "data=fvqa", "algorithm=sft", "+experiment=warmup", "scale=laptop"} <= set(OPTIONS)


def test_the_laptop_is_the_default() -> None:
    assert composed() == composed("scale=laptop")
    config = composed()
    assert (config.trainer.accelerator, config.trainer.devices, config.data.kind) == ("cpu", 1, "emblem")


def test_the_large_scales_are_the_papers_run() -> None:
    """docs/reference.md, section 4: 512 prompts x 8, mini-batches of 128, lr 2e-6, k3 KL 0.001, clip 0.2, 50 steps."""
    for scale, nodes in (("8xh100", 1), ("4x8h100", 4)):
        config = shipped("+experiment=grpo_balanced", f"scale={scale}")
        grpo, rollout = config.algorithm, config.rollout
        assert (config.trainer.devices, config.trainer.num_nodes, config.trainer.max_steps) == (8, nodes, 50)
        assert (grpo.prompts_per_step, grpo.group_size, grpo.prompts_per_step // grpo.mini_batches) == (512, 8, 128)
        assert (grpo.lr, grpo.kl_weight, grpo.clip_low, grpo.clip_high) == (2e-6, 0.001, 0.2, 0.2)
        assert (rollout.turns, rollout.image_searches, rollout.text_searches) == (3, 1, 2)
        assert (rollout.turn_tokens, rollout.temperature, rollout.top_p) == (2048, 1.0, 1.0)
        assert config.model.path == "Qwen/Qwen2.5-VL-7B-Instruct" and config.data.kind == "fvqa"
        assert (config.rewards.format_weight, config.rewards.search_penalty) == (0.1, 0.1)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not is_dataclass(node):
        return {prefix: node}
    return {k: v for name, value in vars(node).items() for k, v in flat(value, f"{prefix}.{name}".lstrip(".")).items()}


def test_the_experiments_differ_in_one_thing_each() -> None:
    balanced = flat(shipped("+experiment=grpo_balanced"))
    only_searching = {"data.mix.name": "search_required_only", "data.mix.shares.free": 0.0}
    for other, changes in (
        ("no_penalty", {"rewards.search_penalty": 0.0}),
        ("unbalanced", only_searching | {"data.mix.shares.required": 1.0}),
    ):
        different = {k: v for k, v in flat(shipped(f"+experiment=grpo_{other}")).items() if v != balanced[k]}
        assert different == {"name": f"grpo_{other}"} | changes


MIXES = {
    "balanced": {"free": 0.5, "required": 0.5},
    "search_required_only": {"required": 1.0},
    "natural": {"all": 1.0},
    "free_25": {"free": 0.25, "required": 0.75},
    "free_75": {"free": 0.75, "required": 0.25},
    "by_need": {"free": 0.5, "text": 0.2, "image": 0.1, "both": 0.2},
}


def test_the_mixes_are_what_their_names_say() -> None:
    assert {file.stem for file in (CONF / "data" / "mix").glob("*.yaml")} == set(MIXES)
    for name, shares in MIXES.items():
        mix = shipped(f"data/mix={name}").data.mix
        assert mix.name == name and {k: v for k, v in vars(mix.shares).items() if v} == shares


def test_the_mix_given_on_the_command_line_goes_before_that_of_the_experiment() -> None:
    config = shipped("+experiment=grpo_balanced", "data=fvqa", "data/mix=by_need", "data.mix.shares.free=.4")
    assert config.data.mix.name == "by_need" and config.data.mix.shares.free == 0.4
    assert shipped("+experiment=grpo_balanced", "data=fvqa").data.mix.name == "balanced"
    assert shipped("data=fvqa").data.mix.name == "natural"


BAD = [
    ("seed=-1", "seed=-1", "[0, 2^32)"),
    ("model.dtype=float8", "model.dtype=float8", "float32, bfloat16"),
    ("model.hidden=64", "model.hidden=64", "multiple of 128"),
    ("model.logprob_chunk=0", "model.logprob_chunk=0", "positive"),
    ("rollout.engine=sglang", "rollout.engine=sglang", "one of vllm"),
    ("rollout.overlap=2", "rollout.overlap=2", "0 or 1"),
    ("rollout.oversample=1.5", "rollout.oversample=1.5", "between 0 and 1"),
    ("rollout.overlap=1 rollout.oversample=0.5 rollout.max_staleness=1", "rollout.max_staleness=1", "at least 2"),
    ("rollout.deterministic=true rollout.oversample=0.5", "rollout.oversample=0.5", "give 0"),
    ("rollout.deterministic=true algorithm.all_equal=refill", "algorithm.all_equal=refill", "give drop"),
    ("rollout.keep_running=true", "rollout.keep_running=True", "vllm_process"),
    ("rollout.engine=vllm_process rollout.deterministic=true", "rollout.deterministic=True", "give false"),
    ("rollout.sleep=true rollout.overlap=1", "rollout.sleep=True", "give false"),
    ("rollout.sleep=true", "rollout.sleep=True", "trainer.accelerator=cuda"),
    (
        "rollout.sleep=true rollout.engine=vllm_server rollout.server.urls=[http://a:1]",
        "rollout.sleep=True",
        "GPUs of their own",
    ),
    ("rollout.engine=vllm_process rollout.keep_running=true", "rollout.keep_running=True", "rollout.overlap"),
    ("rollout.engine=vllm_server", "rollout.server.urls=[]", "name the machines"),
    ("rollout.server.urls=[node7:8000]", "rollout.server.urls=node7:8000", "http://"),
    ("rollout.server.transfer=smoke", "rollout.server.transfer=smoke", "nccl, mmsr1_shm"),
    ("rollout.transformers.max_batch=0", "rollout.transformers.max_batch=0", "positive"),
    ("algorithm.correction=word", "algorithm.correction=word", "off, token, sequence"),
    ("algorithm.correction_cap=0.5", "algorithm.correction_cap=0.5", "1 or more"),
    ("algorithm.mask_gap_above=0", "algorithm.mask_gap_above=0.0", "above 0"),
    ("algorithm.all_equal=repeat", "algorithm.all_equal=repeat", "keep, drop, refill"),
    ("algorithm.max_refills=-1", "algorithm.max_refills=-1.0", "0 or more"),
    ("rollout.on_tool_failure=retry", "rollout.on_tool_failure=retry", "stop, tell"),
    ("rollout.turns=0", "rollout.turns=0", "positive"),
    ("rollout.image_searches=-1", "rollout.image_searches=-1", "0 or more"),
    ("rollout.temperature=-0.5", "rollout.temperature=-0.5", "0 (greedy) or more"),
    ("rollout.top_p=0", "rollout.top_p=0.0", "(0, 1]"),
    ("rollout.top_p=1.5", "rollout.top_p=1.5", "(0, 1]"),
    ("rollout.turn_tokens=512", "rollout.episode_tokens=1024", "two turns"),
    ("rollout.vllm.max_model_len=1023", "rollout.vllm.max_model_len=1023", "rollout.episode_tokens"),
    ("rollout.vllm.max_num_batched_tokens=9", "rollout.vllm.max_num_batched_tokens=9", "rollout.vllm.max_model_len"),
    ("rollout.vllm.images_per_prompt=5", "rollout.vllm.images_per_prompt=5", "at least 6"),
    ("rollout.image_searches=2", "rollout.vllm.images_per_prompt=8", "at least 11"),
    ("tools.text_results=0", "tools.text_results=0", "positive"),
    ("tools.thumbnails=6", "tools.thumbnails=6", "tools.image_results"),
    ("rewards.format_weight=1.1", "rewards.format_weight=1.1", "[0, 1]"),
    ("rewards.search_penalty=1", "rewards.search_penalty=1.0", "[0, 1)"),
    ("rewards.penalty_mode=daily", "rewards.penalty_mode=daily", "per_question, per_call"),
    ("rewards.match=fuzzy", "rewards.match=fuzzy", "em, subem"),
    ("data.kind=csv", "data.kind=csv", "emblem, fvqa"),
    ("data.mix.shares.free=-1", "data.mix.shares.free=-1.0", "0 or more"),
    ("data.mix.shares.free=0 data.mix.shares.required=0", "data.mix.shares=0.0", "data.mix.shares.all=1"),
    ("data.mix.curriculum=easy", "data.mix.curriculum=easy", "easy_first, hard_first"),
    ("data.mix.curriculum=hard_first", "data.mix.curriculum_steps=0", "give data.mix.curriculum_steps"),
    ("data.mix.curriculum_steps=-1", "data.mix.curriculum_steps=-1", "0 or more"),
    ('data.sources=[{"path":"a","weight":0}]', "data.sources[0].weight=0.0", "positive"),
    ('data.sources=[{"path":"a"},{"path":"b"},{"path":"a"}]', "data.sources[2].path=a", "larger weight"),
    ('data.sources=[{"path":"a"}] data.train_path=b', "data.train_path=b", "either this or data.sources"),
    ("data.kind=fvqa", "data.train_path=None", "data.train_path=fvqa_train.parquet"),
    ("data.val_size=0", "data.val_size=0", "6 or more"),
    ("data.world.known_heldout=0", "data.world.known_heldout=0", "positive"),
    ("algorithm.aggregation=sum", "algorithm.aggregation=sum", "token_mean, sequence_mean, constant_length"),
    ("algorithm.advantage=mean", "algorithm.advantage=mean", "std, none"),
    ("algorithm.lr_schedule=step", "algorithm.lr_schedule=step", "constant, linear, cosine, sigmoid"),
    ("algorithm.group_size=1", "algorithm.group_size=1", "2 or more"),
    ("algorithm.mini_batches=17", "algorithm.mini_batches=17", "algorithm.prompts_per_step"),
    ("algorithm.mini_batches=0", "algorithm.mini_batches=0", "between 1"),
    ("algorithm.lr=0", "algorithm.lr=0.0", "positive"),
    ("algorithm.clip_low=0", "algorithm.clip_low=0.0", "(0, 1]"),
    ("algorithm.kl_weight=-1", "algorithm.kl_weight=-1.0", "0 or more"),
    ("algorithm.token_budget=0", "algorithm.token_budget=0", "positive"),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu", "cpu, cuda"),
    ("trainer.devices=0", "trainer.devices=0", "positive"),
    ("trainer.max_steps=-3", "trainer.max_steps=-3", "positive"),
    ("logger.mode=sometimes", "logger.mode=sometimes", "online, offline"),
]


@pytest.mark.parametrize(("override", "named", "remedy"), BAD, ids=[override for override, *_ in BAD])
def test_a_value_that_makes_no_sense_is_told_with_key_value_and_remedy(override: str, named: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(override)
    message = str(caught.value)
    assert message.startswith(f"{named}: ") and remedy in message and "\n" not in message


@pytest.mark.parametrize(
    "override",
    ["rollout.top_p=1", "rollout.turn_tokens=511", "tools.thumbnails=0", "rewards.search_penalty=0", "seed=4294967295"],
)
def test_values_at_the_edge_are_taken(override: str) -> None:
    key, _, value = override.partition("=")
    assert flat(changed(override))[key] == float(value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("sed=1", "sed"),
        ("rollout.turn=3", "rollout.turn"),
        ("rollout.vllm.max_seqs=3", "rollout.vllm.max_seqs"),
        ("data.world.known=3", "data.world.known"),
        ("algorithm.muon_lr=0.1", "algorithm.muon_lr"),
        ("scael=laptop", "scael"),
    ],
)
def test_a_key_that_is_not_there_is_named(override: str, key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"'{key}'"):
        composed(override)


@pytest.mark.parametrize("override", ["seed=abc", "rollout.turns=1.5", "algorithm.lr=fast", "model.freeze_vision=3.5"])
def test_a_value_of_the_wrong_type_is_refused(override: str) -> None:
    with pytest.raises((ConfigCompositionException, OmegaConfBaseException)) as caught:
        composed(override)
    chain = f"{caught.value} {caught.value.__cause__}"
    assert override.partition("=")[0] in chain and override.partition("=")[2] in chain


@pytest.fixture
def with_experiment(tmp_path: Path) -> Any:
    """The shipped configuration and one more experiment."""
    shutil.copytree(CONF, tmp_path / "conf")

    def make(text: str) -> Config:
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: mine\n{text}")
        return composed("+experiment=mine", conf=tmp_path / "conf")

    return make


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {train_pth: a.parquet}", "train_pth"),
        ("algorithm: {lrr: 0.1}", "lrr"),
        ("rewads: {match: em}", "rewads"),
        ("rollout: {vllm: {max_nun_seqs: 1}}", "max_nun_seqs"),
        ("data: {world: {graaded: 1}}", "graaded"),
        ("maxsteps: 3", "maxsteps"),
    ],
)
def test_a_typo_in_an_experiment_file_fails_with_the_keys_name(with_experiment: Any, text: str, key: str) -> None:
    with pytest.raises(ConfigCompositionException, match=f"experiment/mine(.|\n)*'{key}'"):
        with_experiment(text)


def test_a_missing_option_in_an_experiment_file_is_named(with_experiment: Any) -> None:
    with pytest.raises(MissingConfigException, match="algorithm/ppo"):
        with_experiment("defaults:\n  - override /algorithm: ppo\n")


def test_a_new_experiment_file_needs_only_its_difference(with_experiment: Any) -> None:
    config = with_experiment("rewards: {search_penalty: 0.5}")
    assert config.rewards.search_penalty == 0.5 and config.algorithm == composed().algorithm


# What cannot be asked of tools, budgets and faults.
BAD_TOOLS = [
    ("tools.text_search.provider=bing", "tools.text_search.provider=bing", "serpapi, serper, brave, tavily, searxng"),
    (
        "tools.image_search.provider=brave",
        "tools.image_search.provider=brave",
        "local, replay, serpapi, serper, retrieve",
    ),
    ("tools.reader.provider=lynx", "tools.reader.provider=lynx", "none, jina, local"),
    ("tools.summarizer.provider=openai", "tools.summarizer.url=None", "for provider=openai runs"),
    ("tools.text_search.provider=searxng", "tools.text_search.url=None", "for provider=searxng runs"),
    ("tools.text_search.url=http://ann:sk-123abc@h:80", "tools.text_search.url=***", "user or password"),
    ("tools.text_search.url=ann:sk-123abc@h:80/a", "tools.text_search.url=***", "user or password"),
    (
        "tools.text_search.provider=retrieve tools.image_search.provider=retrieve",
        "tools.text_search.url=None",
        "say where the service for provider=retrieve runs",
    ),
    ("tools.text_search.provider=replay", "tools.bundle=None", "give the folder of a bundle"),
    ("tools.on_miss=skip", "tools.on_miss=skip", "fail, empty"),
    ("tools.similar=1.5", "tools.similar=1.5", "at most 1"),
    ("tools.text_search.url=localhost:80", "tools.text_search.url=localhost:80", "http://"),
    ("tools.text_search.key_env=sk-123abc", "tools.text_search.key_env=***", "name of an environment variable"),
    ("tools.text_search.price_usd=-1", "tools.text_search.price_usd=-1.0", "0 or more"),
    ("tools.text_search.rate_per_s=0", "tools.text_search.rate_per_s=0.0", "positive"),
    ("tools.text_search.attempts=0", "tools.text_search.attempts=0", "positive"),
    ("tools.image_search.provider=serper", "tools.image_url=None", "{digest}"),
    (
        "tools.image_search.provider=serpapi",
        "tools.thumbnail_hosts=[]",
        "tools.thumbnails=0",
    ),
    ("tools.image_url=https://h.example/i.png", "tools.image_url=https://h.example/i.png", "{digest}"),
    (
        "tools.summarizer.provider=openai tools.summarizer.url=http://h:1",
        "tools.summarizer.provider=openai",
        "tools.reader.provider",
    ),
    ("tools.pages_tried=0", "tools.pages_tried=0", "positive"),
    ("tools.reader.provider=jina tools.pages_tried=4", "tools.pages_tried=4", "tools.text_results"),
    ("tools.budget.when_spent=ask", "tools.budget.when_spent=ask", "stop, tell"),
    ("tools.budget.usd_per_run=-0.1", "tools.budget.usd_per_run=-0.1", "0 or more, or null"),
    ("tools.budget.calls_per_day=-1", "tools.budget.calls_per_day=-1", "0 or more, or null"),
    ("faults.share=1.5", "faults.share=1.5", "between 0 and 1"),
    ("faults.outage=[reader]", "faults.outage=reader", "image_search, text_search"),
    ("faults.attempts=0", "faults.attempts=0", "positive"),
    ("rollout.on_over_budget=ignore", "rollout.on_over_budget=ignore", "stop, tell"),
]


@pytest.mark.parametrize(("override", "named", "remedy"), BAD_TOOLS, ids=[override for override, *_ in BAD_TOOLS])
def test_tools_that_make_no_sense_are_told_with_key_value_and_remedy(override: str, named: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(override)
    message = str(caught.value)
    assert message.startswith(f"{named}: ") and remedy in message and "\n" not in message
    assert "sk-123abc" not in message


def test_whole_stacks_are_selected_by_name_and_parts_are_swapped() -> None:
    def names(config: Config) -> tuple[str, ...]:
        tools = config.tools
        return tuple(part.provider for part in (tools.image_search, tools.text_search, tools.reader, tools.summarizer))

    assert names(composed()) == ("local", "local", "none", "none")
    assert names(shipped("tools=web")) == ("serpapi", "serpapi", "jina", "openai")
    assert names(shipped("tools=retrieve")) == ("retrieve", "retrieve", "none", "none")
    swapped = shipped("tools=web", "tools.text_search.provider=brave", "tools.reader.provider=local")
    assert names(swapped) == ("serpapi", "brave", "local", "openai")


def test_a_search_by_address_needs_to_know_where_the_pictures_are() -> None:
    by_address = ("tools=web", "+tools.image_search.options.by=url")
    with pytest.raises(Exception, match="tools.image_url=None: must say where"):
        shipped(*by_address)
    config = shipped(*by_address, "tools.image_url='https://host.example/{digest}.png'")
    assert config.tools.image_search.options == {"by": "url"}


def test_the_web_stack_says_nothing_of_keys_but_their_variables() -> None:
    text = OmegaConf.to_yaml(shipped("tools=web", "tools.text_search.key_env=MY_KEY"))
    assert "key_env: MY_KEY" in text and "api_key" not in text


def test_faults_come_in_three_sizes() -> None:
    nothing = composed().faults
    assert not (nothing.share or nothing.outage or nothing.latency_s)
    rehearsal, outage = shipped("faults=rehearsal").faults, shipped("faults=outage").faults
    assert rehearsal.share == 0.3 and not rehearsal.outage
    assert outage.outage == ["image_search"] and not outage.share
