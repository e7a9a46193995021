"""Indexes with a model: tiny ones with random weights, made here. What they find means nothing; that it is the model's
does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from index_helpers import folder, rows, run, task, written
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from mmsr1.tools import embedding
from mmsr1.tools.embedding import Encoder, PictureEncoder, TextEncoder
from mmsr1.tools.image_search.local import LocalImageSearch
from mmsr1.tools.image_search.writing import ImageEntry, ImageWriter
from mmsr1.tools.pictures import encode_png
from mmsr1.tools.text_search.local import LocalTextSearch
from mmsr1.tools.text_search.writing import TextWriter
from mmsr1.types import Picture

ROOT = Path(__file__).parents[3]

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    home = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    (home / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(home)
    BertModel(BertConfig(vocab_size=len(words), **SIZES)).save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    home = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    text = {**SIZES, "vocab_size": 50, "projection_dim": 16}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)).save_pretrained(home)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(home)
    return home


def text_index(tmp_path, model, mode):
    settings = TextWriter.settings(Encoder(str(model), query_prefix="q ").weighed("text"), mode)
    file = written(tmp_path / f"{mode}.jsonl", rows(60))
    run(task(tmp_path / mode, "text", file, settings=settings))
    return LocalTextSearch(tmp_path / mode, topk=5)


def test_a_text_is_the_mean_of_its_tokens_whatever_stands_beside_it(bert):
    encode = TextEncoder(Encoder(str(bert)))
    alone = encode(["a tower"], query=False)
    beside = encode(["a tower", "a much longer text about a tower and a bridge"], query=False)
    np.testing.assert_allclose(alone[0], beside[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(beside, axis=1), 1, atol=1e-5)
    first = TextEncoder(Encoder(str(bert), pooling="cls"))(["a tower"], query=False)
    assert not np.allclose(alone, first, atol=1e-3)
    prefixed = TextEncoder(Encoder(str(bert), query_prefix="a "))
    np.testing.assert_allclose(prefixed(["tower"], query=True), alone, atol=1e-6)


def test_hybrid_joins_both_rankings(tmp_path, bert):
    tool = text_index(tmp_path, bert, "hybrid")
    hits = tool.find("n17")
    assert "p17" in [hit.id for hit in hits[:2]]  # the first by words, beside the first by vectors
    assert len(hits) == 5
    encode = TextEncoder(Encoder(str(bert), query_prefix="q "))
    passages = encode([f"{row['title']}\n{row['text']}" for row in rows(60)], query=False)
    nearest = np.argsort(-(passages @ encode(["zzz"], query=True)[0]))[:5]
    assert [hit.id for hit in tool.find("zzz")] == [f"p{number}" for number in nearest]  # which no passage has


def test_rerank_sorts_what_the_words_found(tmp_path, bert):
    tool = text_index(tmp_path, bert, "rerank")
    hits = tool.find("king")
    assert {"king" in f"{hit.item.title} {hit.item.text}" for hit in hits} == {True}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert tool.find("zzz") == []


def test_other_weights_under_the_same_name_are_refused(tmp_path, bert):
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    text_index(tmp_path, model, "hybrid")
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(model)).save_pretrained(model)
    with pytest.raises(ValueError, match="not the weights"):
        LocalTextSearch(tmp_path / "hybrid")


def test_weights_that_would_be_unpickled_are_refused(tmp_path, bert):
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    torch.save(BertModel.from_pretrained(model).state_dict(), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no encoder with safetensors") as told:
        Encoder(str(model)).weighed("text")
    assert "\n" not in str(told.value)


def test_an_index_of_pictures_by_a_model(tmp_path, clip):
    encoder = Encoder(str(clip)).weighed("image")
    settings = ImageWriter.settings(encoder=encoder, thumbnail_px=32)
    pictures = folder(tmp_path / "pictures", 20)
    manifest, _ = run(task(tmp_path / "index", "image", pictures, settings=settings))
    assert manifest.settings["encoder"]["digest"] == encoder.digest and "descriptor" not in manifest.settings
    assert manifest.sizes["vectors.f32"] == 20 * 16 * 4
    tool = LocalImageSearch(tmp_path / "index", topk=1)
    assert tool.find(Picture((pictures / "013.png").read_bytes()))[0].id == "013.png"


def test_dino_gives_its_pooled_output(tmp_path):
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    config = tmp_path / "preprocessor_config.json"
    assert json.loads(config.read_text())
    vectors = PictureEncoder(Encoder(str(tmp_path)))([Image.new("RGB", (40, 30), "teal")] * 2)
    assert vectors.shape == (2, 32) and np.allclose(vectors[0], vectors[1])


def test_an_index_whose_model_was_moved_says_how_to_go_on(tmp_path, bert):
    shutil.copytree(bert, tmp_path / "model")
    text_index(tmp_path, tmp_path / "model", "hybrid")
    before = [hit.id for hit in LocalTextSearch(tmp_path / "hybrid").find("zzz")]
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=r"put it or a link to it at .*hybrid/model \(search also takes --model\)"
    ) as told:
        LocalTextSearch(tmp_path / "hybrid")
    assert "\n" not in str(told.value)
    given = LocalTextSearch(tmp_path / "hybrid", model=str(tmp_path / "elsewhere"))
    assert [hit.id for hit in given.find("zzz")] == before
    (tmp_path / "hybrid" / "model").symlink_to(tmp_path / "elsewhere")
    assert [hit.id for hit in LocalTextSearch(tmp_path / "hybrid").find("zzz")] == before
    more = written(tmp_path / "more.jsonl", rows(5, 60))
    settings = LocalTextSearch(tmp_path / "hybrid").manifest.settings
    assert run(task(tmp_path / "hybrid", "text", more, append=True, settings=settings))[0].count == 65


def test_a_model_is_loaded_once_for_all_who_use_it(tmp_path, bert):
    before = embedding._loaded.cache_info().misses
    encoder = Encoder(str(bert), pooling="cls").weighed("text")
    shutil.copytree(bert, tmp_path / "model")
    one, two = TextEncoder(encoder), TextEncoder(Encoder(str(bert), query_prefix="q "))
    assert one.model is two.model and one.one is two.one
    assert embedding._loaded.cache_info().misses - before <= 1
    assert TextEncoder(Encoder(str(tmp_path / "model"))).model is not one.model


def test_a_picture_is_kept_as_what_the_model_looks_at(tmp_path, clip):
    """Photographs of a whole batch would be gigabytes."""
    settings = ImageWriter.settings(encoder=Encoder(str(clip)))
    made = ImageWriter(tmp_path, settings).prepare(
        ImageEntry("a", "", "", encode_png(Image.effect_noise((1500, 1000), 50).convert("RGB")))
    )
    held = [value for value in vars(made).values() if isinstance(value, Image.Image)]
    assert held == [] and made.pixels is not None
    assert {tuple(one.shape) for one in made.pixels.values()} == {(1, 3, 32, 32)}


@pytest.mark.parametrize("count", [1, 32, 33, 70])
def test_models_are_asked_in_pieces_with_the_same_result(monkeypatch, bert, clip, count):
    texts = [f"n{number}" for number in range(count)]
    images = [Image.new("RGB", (40, 40), (number, 2 * number, 90)) for number in range(count)]
    text, image = TextEncoder(Encoder(str(bert))), PictureEncoder(Encoder(str(clip)))
    asked = []
    for one in (text, image):
        monkeypatch.setattr(one, "_piece", lambda given, real=one._piece: (asked.append(len(given)), real(given))[1])
    in_pieces = text(texts, query=False), image(images)
    assert max(asked) <= 32 and sum(asked) == 2 * count
    monkeypatch.setattr(embedding, "_PIECE", 1)
    np.testing.assert_allclose(in_pieces[0], text(texts, query=False), atol=1e-5)
    np.testing.assert_allclose(in_pieces[1], image(images), atol=1e-5)


def test_a_model_is_loaded_in_a_process_that_has_prepared_nothing(clip):
    """In the tests themselves torchvision is imported before; see `mmsr1.torchvision_shim`."""
    program = (
        "from mmsr1.tools.embedding import Encoder; import sys; print(Encoder(sys.argv[1]).weighed('image').digest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(clip)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip() == Encoder(str(clip)).weighed("image").digest
