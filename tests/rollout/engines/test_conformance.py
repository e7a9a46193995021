"""The conformance suite on the engines that start quickly; `make accept NAME=engines` runs it on all, and larger."""

from __future__ import annotations

from typing import Any

import pytest

from mmsr1.rollout.engines.transformers import TransformersEngine
from mmsr1.rollout.engines.vllm import VllmEngine
from tests.rollout.engines.conformance import TENSORS, ExpandsPlaceholders, KeepsOneTensor, Violation, check
from tests.rollout.engines.talks import Tiny, save_tiny

COUNT = 6


def made(name: str, tiny: Tiny, **faults: Any) -> Any:
    if name == "vllm":
        return VllmEngine(tiny.folder, max_model_len=512, max_num_seqs=16, kv_cache_bytes=2**26, **faults)
    return TransformersEngine(tiny.folder, max_model_len=512, max_batch=16, **faults)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_all_engines_say_the_same_and_follow_the_weights(tied, tmp_path, loop):
    found = {}
    for name in ("vllm", "transformers"):
        tiny = save_tiny(tmp_path / name, tied)
        engine = made(name, tiny)
        found[name] = loop.run(check(engine, tiny, COUNT))
        loop.run(engine.close())
    assert found["vllm"].greedy == found["transformers"].greedy


@pytest.mark.parametrize("name", ["vllm", "transformers"])
@pytest.mark.parametrize("fault", ["encoder cache kept", "placeholders expanded", *TENSORS])
def test_a_planted_fault_is_caught(name, fault, tmp_path, loop):
    tiny = save_tiny(tmp_path, tied=True)
    engine = made(name, tiny, **({"reset_encoder_cache": False} if fault == "encoder cache kept" else {}))
    faulty = engine
    if fault == "placeholders expanded":
        faulty = ExpandsPlaceholders(engine, tiny)
    elif fault in TENSORS:
        faulty = KeepsOneTensor(engine, tiny, fault)
    with pytest.raises(Violation):
        loop.run(check(faulty, tiny, COUNT))
    loop.run(engine.close())
