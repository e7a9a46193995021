"""Token prompts and pictures into the bodies of a vLLM server's generate route.

Pictures are processed on this side, once per content, by the processor of the model's folder: the same pixels whatever
server answers. A server keeps what it was sent under the picture's digest, and the caller may then leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from mmsr1.rollout.engines.base import Sampling, TokenPrompt
from mmsr1.rollout.engines.vllm_child import child_environment
from mmsr1.rollout.engines.vllm_core import vision_ban
from mmsr1.rollout.engines.vllm_inputs import PromptBuilder
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalKwargsItem, PlaceholderRange


@dataclass(frozen=True)
class Inputs:
    """A prompt with every placeholder widened, and for each image its digest, its place and its processed fields."""

    token_ids: list[int]
    digests: list[str]
    places: list[PlaceholderRange]
    fields: list[MultiModalKwargsItem]


class BodyBuilder:
    """Not safe to share between threads. Raises what vLLM raises for a model that it cannot serve.

    `dtype` is the servers' own. `cache_bytes` bounds the processed images that are kept. `raw_pixels` says whether the
    pixels are left for the server to normalise, which it must have been started to do, then, and only then.
    """

    def __init__(
        self,
        model: str,
        dtype: str,
        max_model_len: int,
        images_per_prompt: int,
        cache_bytes: int,
        pixels: Callable[[Picture], Image],
    ) -> None:
        with child_environment(threads=1, eager=True):  # leaves this process as it was
            ensure_torchvision()
            from vllm.config import VllmConfig
            from vllm.engine.arg_utils import EngineArgs
            from vllm.renderers import renderer_from_config

            arguments = EngineArgs(
                model=model,
                dtype=dtype,  # pyright: ignore[reportArgumentType]  (checked by vLLM)
                max_model_len=max_model_len,
                limit_mm_per_prompt={"image": images_per_prompt, "video": 0},
                mm_processor_cache_gb=0,
            )
            model_config = arguments.create_model_config()
            renderer = renderer_from_config(VllmConfig(model_config=model_config))
        self._bias = {str(token): bias for token, bias in vision_ban(model_config.hf_config).items()}
        self.raw_pixels = bool(model_config.get_multimodal_config().mm_device_do_normalize)
        self._max_model_len = max_model_len
        self._renderer = renderer
        image_token = getattr(model_config.hf_config, "image_token_id", None)
        self._prompts = PromptBuilder(renderer, image_token, images_per_prompt, cache_bytes, pixels)

    def build(self, prompt: TokenPrompt) -> Inputs:
        """Raises what `PromptBuilder.build` raises, and ValueError for a prompt that leaves no room for an answer."""
        built: Any = self._prompts.build(prompt)
        ids = built["prompt_token_ids"]
        if len(ids) >= self._max_model_len:
            raise ValueError(f"{len(ids)} tokens, longer than the maximum model length of {self._max_model_len}")
        if built["type"] != "multimodal":
            return Inputs(ids, [], [], [])
        return Inputs(ids, built["mm_hashes"]["image"], built["mm_placeholders"]["image"], built["mm_kwargs"]["image"])

    def body(self, inputs: Inputs, sampling: Sampling, kept: Collection[str]) -> bytes:
        """The request; images whose digests are in `kept` go by their digest alone."""
        body = json.dumps({"token_ids": inputs.token_ids, "sampling_params": self._sampling(inputs, sampling)})
        return (_with(body, "features", self._features(inputs, kept)) if inputs.digests else body).encode()

    def close(self) -> None:
        self._renderer.shutdown()

    def _sampling(self, inputs: Inputs, sampling: Sampling) -> dict[str, Any]:
        """`vllm_core.sampling_params`, as JSON."""
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": min(sampling.max_tokens, self._max_model_len - len(inputs.token_ids)),
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": True,
            "detokenize": bool(sampling.stop),  # only stop strings need the text
            "logprobs": 0,
            "logit_bias": self._bias,
        }

    @staticmethod
    def _features(inputs: Inputs, kept: Collection[str]) -> str:
        from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import encode_mm_kwargs_item

        places = [{"offset": place.offset, "length": place.length} for place in inputs.places]
        features = json.dumps({"mm_hashes": {"image": inputs.digests}, "mm_placeholders": {"image": places}})
        images = zip(inputs.digests, inputs.fields, strict=True)
        data = ("null" if digest in kept else f'"{encode_mm_kwargs_item(fields)}"' for digest, fields in images)
        return _with(features, "kwargs_data", f'{{"image":[{",".join(data)}]}}')


def _with(found: str, name: str, value: str) -> str:
    """A JSON object and one more entry. Base64 is put in as it is: the search for what to escape in a picture of
    6 MB would take four fifths of the time."""
    return f'{found[:-1]}, "{name}": {value}}}'
