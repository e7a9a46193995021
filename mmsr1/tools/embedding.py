"""Learned vectors of texts and pictures, by any encoder that transformers can load: E5, BGE, SigLIP, CLIP, DINO, ...

Weights are read from safetensors only, and no code comes with a model. What an index was made with is an `Encoder`
in its manifest; the digest of the weights tells another model under the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

Pooling = Literal["mean", "cls"]
_TOKENS = 512


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


class _Model:
    """A loaded encoder. Raises ValueError in one line if it cannot be loaded, or its weights are others."""

    def __init__(self, encoder: Encoder, preprocessor: str) -> None:
        import transformers  # takes seconds, and most indexes have no model

        try:
            self.model: Any = transformers.AutoModel.from_pretrained(encoder.model, use_safetensors=True).eval()
            self.prepare: Any = getattr(transformers, preprocessor).from_pretrained(encoder.model)
            digest = _digest(_folder(encoder.model))
        except Exception as error:  # a dozen types, for a name that is not known, a file that lacks, no network, ...
            told = " ".join(str(error).split())[:300]
            raise ValueError(f"{encoder.model}: no encoder with safetensors weights can be loaded: {told}") from error
        if encoder.digest not in ("", digest):
            raise ValueError(
                f"{encoder.model}: not the weights that the index was made with: build it again with these"
            )
        self.encoder, self.digest = encoder, digest

    def _unit(self, vectors: torch.Tensor) -> Float[ndarray, "N D"]:
        return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()


class TextEncoder(_Model):
    """Texts as vectors of length 1."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, "AutoTokenizer")

    def __call__(self, texts: Sequence[str], query: bool) -> Float[ndarray, "N D"]:
        prefix = self.encoder.query_prefix if query else self.encoder.passage_prefix
        limit = min(self.prepare.model_max_length, _TOKENS)
        asked = [prefix + text for text in texts]
        tokens = self.prepare(asked, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        with torch.inference_mode():
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
        pixels = self.prepare(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            if hasattr(self.model, "get_image_features"):  # CLIP, SigLIP: the tower of pictures
                found = self.model.get_image_features(**pixels)
            else:
                found = self.model(**pixels)
        return self._unit(_whole(found))


@lru_cache(maxsize=4)
def text_encoder(encoder: Encoder) -> TextEncoder:
    """Loaded once in a process."""
    return TextEncoder(encoder)


@lru_cache(maxsize=4)
def picture_encoder(encoder: Encoder) -> PictureEncoder:
    """Loaded once in a process."""
    return PictureEncoder(encoder)


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


def _digest(folder: Path) -> str:
    """That of the configuration and of all weights."""
    digest = hashlib.sha256(json.dumps(json.loads((folder / "config.json").read_text()), sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()
