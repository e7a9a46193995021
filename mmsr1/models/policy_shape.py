"""The sizes of a Qwen2.5-VL, vision tower included, and what follows from them: parameters and arithmetic.

Read from a Hugging Face config; no torch here, so that the planner answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionShape:
    """Widths of the vision tower; `patch` is the number of values in one patch, `merge` patches make one token."""

    depth: int
    hidden: int
    intermediate: int
    heads: int
    patch: int
    merge: int

    @property
    def block(self) -> int:
        """Parameters of one block: attention and MLP with biases, two norms."""
        h, i = self.hidden, self.intermediate
        return 4 * h * h + 4 * h + 3 * h * i + 2 * i + h + 2 * h


@dataclass(frozen=True)
class PolicyShape:
    """Widths of the decoder, with the vision tower's. `attention` and `key_value` are all heads together.

    `tied`: the embedding is the head too.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    attention: int
    key_value: int
    vocabulary: int
    tied: bool
    vision: VisionShape

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> PolicyShape:
        """From config.json, old (decoder at the top level) or new (`text_config`).

        Raises ValueError, in one line, for another architecture or a missing size.
        """
        kind = config.get("model_type")
        if kind != "qwen2_5_vl":
            raise ValueError(f"the model is a {kind}; a qwen2_5_vl is needed")
        text, vision = {**config, **(config.get("text_config") or {})}, config.get("vision_config") or {}
        try:
            head = text["hidden_size"] // text["num_attention_heads"]
            return cls(
                hidden=text["hidden_size"],
                intermediate=text["intermediate_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                attention=head * text["num_attention_heads"],
                key_value=head * text["num_key_value_heads"],
                vocabulary=text["vocab_size"],
                tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
                vision=VisionShape(
                    depth=vision["depth"],
                    hidden=vision["hidden_size"],
                    intermediate=vision["intermediate_size"],
                    heads=vision["num_heads"],
                    patch=3 * vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2,
                    merge=vision.get("spatial_merge_size", 2) ** 2,
                ),
            )
        except KeyError as error:
            raise ValueError(f"the model's config.json does not say its {error.args[0]}") from error

    @property
    def head(self) -> int:
        """Parameters of the head (and of the embedding)."""
        return self.vocabulary * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside layers and vision tower: embedding, head, last norm."""
        return self.head * (1 if self.tied else 2) + self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer: q, k, v with biases, o, MLP, two norms."""
        h = self.hidden
        projections = 2 * h * self.attention + 2 * h * self.key_value + self.attention + 2 * self.key_value
        return projections + 3 * h * self.intermediate + 2 * h

    @property
    def merger(self) -> int:
        """Parameters of the vision tower outside its blocks: patch embedding, norm, the two layers of the merger."""
        v = self.vision
        wide = v.hidden * v.merge
        return v.patch * v.hidden + v.hidden + wide * wide + wide + wide * self.hidden + self.hidden

    @property
    def tower(self) -> int:
        return self.vision.depth * self.vision.block + self.merger

    @property
    def parameters(self) -> int:
        return self.root + self.layers * self.layer + self.tower

    def adapters(self, rank: int) -> int:
        """Parameters of one decoder layer's adapters (mmsr1.models.lora): rank x (in + out) of every projection."""
        h, i, a, k = self.hidden, self.intermediate, self.attention, self.key_value
        return rank * (2 * (h + a) + 2 * (h + k) + 3 * (h + i))

    def trained(self, lora_rank: int, freeze_vision: bool) -> int:
        """Parameters with gradients and moments."""
        if lora_rank:
            return self.layers * self.adapters(lora_rank)
        return self.parameters - (self.tower if freeze_vision else 0)

    def cache_bytes(self, width: int) -> int:
        """Bytes of keys and values that a token leaves in the engine's cache, at `width` bytes a number."""
        return 2 * self.layers * self.key_value * width
