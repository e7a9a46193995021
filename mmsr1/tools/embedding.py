"""Learned vectors of texts and pictures, by any encoder that transformers can load: E5, BGE, SigLIP, CLIP, DINO, ...

Weights are read from safetensors only, and no code comes with a model. What an index was made with is an `Encoder`
in its manifest; the digest of the weights tells another model under the same name.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from mmsr1.torchvision_shim import ensure_torchvision

Pooling = Literal["mean", "cls"]
MOVED = "model"  # in an index: its model, or a link to it, where that is not any more where it was
_TOKENS = 512
_PIECE = 32  # texts or pictures that go through a model together


@dataclass(frozen=True)
class Encoder:
    """A model folder or hub name and how it is asked. The prefixes are those that models such as E5 were trained with.

    `pooling` (text only) is which vector of the last layer stands for the whole; `digest` is that of the weights.
    """

    model: str
    pooling: Pooling = "mean"
    query_prefix: str = ""
    passage_prefix: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling={self.pooling}: must be mean or cls")

    def weighed(self, kind: str) -> Encoder:
        """With the digest of its weights. Raises ValueError if it cannot be loaded as an encoder of text or image."""
        return replace(self, digest=(TextEncoder if kind == "text" else PictureEncoder)(self).digest)


@dataclass(frozen=True)
class _Loaded:
    """What all who use a model share; `one` at a time: a model uses all cores, a tokenizer bears no second caller."""

    model: Any
    prepare: Any
    digest: str
    one: threading.Lock


_loading = threading.Lock()


@lru_cache(maxsize=4)
def _loaded(model: str, preprocessor: str, stamp: tuple[Any, ...]) -> _Loaded:
    """`stamp` tells a model that was replaced. Raises ValueError in one line."""
    try:
        ensure_torchvision()
        import transformers  # takes seconds, and most indexes have no model

        loaded: Any = transformers.AutoModel.from_pretrained(model, use_safetensors=True).eval()
        prepare: Any = getattr(transformers, preprocessor).from_pretrained(model)
        return _Loaded(loaded, prepare, _digest(_folder(model)), threading.Lock())
    except Exception as error:  # a dozen types, for a name that is not known, a file that lacks, no network, ...
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"{model}: no encoder with safetensors weights can be loaded: {told}") from error


class _Model:
    """An encoder, loaded once in a process whoever asks. Raises ValueError in one line if it cannot be loaded, or its
    weights are others. May be called from any thread."""

    def __init__(self, encoder: Encoder, preprocessor: str) -> None:
        folder = Path(encoder.model)
        name = str(folder.resolve()) if encoder.model and folder.is_dir() else encoder.model
        with _loading:
            loaded = _loaded(name, preprocessor, _stamp(Path(name)))
        if encoder.digest not in ("", loaded.digest):
            raise ValueError(
                f"{encoder.model}: not the weights that the index was made with: build it again with these"
            )
        self.encoder, self.digest = encoder, loaded.digest
        self.model, self.prepare, self.one = loaded.model, loaded.prepare, loaded.one

    def _unit(self, vectors: torch.Tensor) -> Float[ndarray, "N D"]:
        return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()


class TextEncoder(_Model):
    """Texts as vectors of length 1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, "AutoTokenizer")

    def __call__(self, texts: Sequence[str], query: bool) -> Float[ndarray, "N D"]:
        """At least one text."""
        prefix = self.encoder.query_prefix if query else self.encoder.passage_prefix
        asked = [prefix + text for text in texts]
        return np.concatenate([self._piece(asked[at : at + _PIECE]) for at in range(0, len(asked), _PIECE)])

    def _piece(self, asked: list[str]) -> Float[ndarray, "N D"]:
        limit = min(self.prepare.model_max_length, _TOKENS)
        with self.one, torch.inference_mode():
            tokens = self.prepare(asked, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            layer = self.model(**tokens).last_hidden_state
        if self.encoder.pooling == "cls":
            return self._unit(layer[:, 0])
        mask = tokens["attention_mask"][..., None]
        return self._unit((layer * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))


class PictureEncoder(_Model):
    """Pictures as vectors of length 1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, "AutoImageProcessor")

    def __call__(self, images: Sequence[Image.Image]) -> Float[ndarray, "N D"]:
        """At least one picture."""
        return self.vectors([self.pixels(image) for image in images])

    def pixels(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """What the model looks at, one row of each of its arguments: far less than a photograph's own pixels."""
        with self.one:  # scaling takes several times the memory of the picture
            return dict(self.prepare(images=[image], return_tensors="pt"))

    def vectors(self, pixels: Sequence[Mapping[str, torch.Tensor]]) -> Float[ndarray, "N D"]:
        """At least one."""
        return np.concatenate([self._piece(pixels[at : at + _PIECE]) for at in range(0, len(pixels), _PIECE)])

    def _piece(self, pixels: Sequence[Mapping[str, torch.Tensor]]) -> Float[ndarray, "N D"]:
        given = {name: torch.cat([one[name] for one in pixels]) for name in pixels[0]}
        with self.one, torch.inference_mode():
            if hasattr(self.model, "get_image_features"):  # CLIP, SigLIP: the tower of pictures
                found = self.model.get_image_features(**given)
            else:
                found = self.model(**given)
            return self._unit(_whole(found))


EncoderT = TypeVar("EncoderT", TextEncoder, PictureEncoder)


def encoder_of(
    make: type[EncoderT], directory: Path, settings: Mapping[str, Any], model: str | None = None
) -> EncoderT:
    """The encoder that the `settings` of an index name: from `model` if given, else from `MOVED` inside the index if
    that is there, else from where it was. Raises ValueError with the remedy if it is not there or is another."""
    encoder, moved = Encoder(**settings["encoder"]), directory / MOVED
    place = model or (str(moved) if moved.is_dir() else encoder.model)
    try:
        return make(replace(encoder, model=place))
    except ValueError as error:
        raise ValueError(
            f"{error}; if the index's model was moved, put it or a link to it at {moved} (search also takes --model)"
        ) from error


def _whole(found: Any) -> torch.Tensor:
    """The one vector for a picture in what a model returns."""
    if isinstance(found, torch.Tensor):
        return found
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state.mean(dim=1) if pooled is None else pooled.flatten(1)


def _folder(model: str) -> Path:
    """Where the files of a model lie that has been loaded."""
    from transformers.utils.hub import cached_file

    found = cached_file(model, "config.json")
    if found is None:
        raise FileNotFoundError("no config.json")
    return Path(found).parent


def _stamp(folder: Path) -> tuple[Any, ...]:
    """Changes when a model's files do; a hub name has none."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _digest(folder: Path) -> str:
    """That of the configuration and of all weights."""
    digest = hashlib.sha256(json.dumps(json.loads((folder / "config.json").read_text()), sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
