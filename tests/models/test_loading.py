"""A policy goes to disk and comes back the same; what is no policy is refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from mmsr1.models.loading import PolicyFiles, load_policy, save_policy
from mmsr1.models.packing import flatten, pack
from mmsr1.models.policy import Policy
from mmsr1.models.tiny import tiny_image_processor
from mmsr1.tools.pictures import decode
from tests.models.conversations import conversation, image_token, patches, picture, tiny_model, tokenizer


@pytest.fixture(scope="module")
def files() -> PolicyFiles:
    return PolicyFiles(tiny_model(3), tokenizer(), tiny_image_processor(), patches())


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(path, files, None, torch.float32)
    return path


def test_what_was_saved_is_loaded(files, folder):
    loaded = load_policy(str(folder), "float32", decode)
    before, after = files.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    text = "<|im_start|>user\nwhat is <search> & <|image_pad|>?"
    assert loaded.tokenizer.encode(text) == files.tokenizer.encode(text)
    assert (loaded.image_token, loaded.merge) == (image_token(), 2)
    shown = picture(4, 112, 56)
    assert torch.equal(loaded.patches(shown)[0], files.patches(shown)[0])


def test_a_loaded_policy_gives_the_same_log_probs(files, folder):
    loaded = load_policy(str(folder), "float32", decode)
    batch = pack([flatten(conversation(2), patches(), image_token())], patches())
    with torch.no_grad():
        expected = Policy(files.model)(batch).logprobs_T
        assert torch.equal(Policy(loaded.model)(batch).logprobs_T, expected)


def test_given_tensors_are_saved_instead_of_the_models_own_in_the_type_asked_for(files, tmp_path):
    other = {name: tensor + 1 for name, tensor in files.model.named_parameters()}
    save_policy(tmp_path, files, other, torch.bfloat16)
    loaded = load_policy(str(tmp_path), "bfloat16", decode)
    for name, tensor in loaded.model.named_parameters():
        assert torch.equal(tensor, other[name].to(torch.bfloat16)), name


def nothing(path):
    path.rmdir()


def empty(path):
    pass


def not_json(path):
    (path / "config.json").write_text("{")


def other_architecture(path):
    (path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 64}))


def unheard_of_architecture(path):
    (path / "config.json").write_text(json.dumps({"model_type": "qwen9_omni"}))


@pytest.mark.parametrize("make", [nothing, empty, not_json, unheard_of_architecture])
def test_a_path_without_a_model_is_refused_in_one_line(make, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    make(path)
    with pytest.raises(ValueError, match="no model there") as caught:
        load_policy(str(path), "float32", decode)
    assert f"model.path={path}" in str(caught.value) and "\n" not in str(caught.value)


def test_another_architecture_is_named(tmp_path):
    other_architecture(tmp_path)
    with pytest.raises(ValueError, match="the model is a qwen2; a qwen2_5_vl is needed") as caught:
        load_policy(str(tmp_path), "float32", decode)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_an_incomplete_folder_is_refused_in_one_line(lost, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / lost).unlink()
    with pytest.raises(ValueError, match=r"model\.path=.*copy") as caught:
        load_policy(str(tmp_path / "copy"), "float32", decode)
    assert "\n" not in str(caught.value)
