"""The policy: Qwen2.5-VL with a log-prob head that never holds the logits of more than a chunk of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmsr1.batch import Batch
from mmsr1.models import attention
from mmsr1.models.logprob_head import token_logprobs
from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402  (the shim must come first)


@dataclass(frozen=True)
class TokenStats:
    """Per packed token: log p(token | before) and the entropy (nats) of the distribution it was drawn from.

    Both are 0 where the batch's loss mask is not set.
    """

    logprobs_T: Float[Tensor, "T"]
    entropy_T: Float[Tensor, "T"]


class Policy(nn.Module):
    """Wraps the model so that everything, head included, happens inside one `forward` (FSDP2 unshards there)."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, chunk: int = 1024) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        model.model.language_model.config._attn_implementation = attention.NAME

    def forward(self, batch: Batch) -> TokenStats:
        """Log-probs of the learned tokens of a packed batch at temperature 1."""
        hidden = self.hidden_states(batch)
        learned = batch.loss_mask_T.nonzero()[:, 0]
        logprobs = hidden.new_zeros(len(batch.token_ids), dtype=torch.float32)
        entropy = torch.zeros_like(logprobs)
        if len(learned) == 0:  # every parameter gets a gradient, or ranks would send each other different lengths
            return TokenStats(logprobs + 0 * hidden.sum() + 0 * self.model.lm_head.weight.sum(), entropy)
        found, spread = token_logprobs(
            hidden[learned - 1], self.model.lm_head.weight, batch.token_ids[learned], self.chunk
        )
        logprobs = logprobs.index_put((learned,), found)
        entropy = entropy.index_put((learned,), spread)
        return TokenStats(logprobs, entropy)

    def hidden_states(self, batch: Batch) -> Float[Tensor, "T H"]:
        """Last hidden states; each distinct image is encoded once, whatever the number of its appearances."""
        backbone = self.model.model
        embeds = backbone.language_model.embed_tokens(batch.token_ids)
        # transformers annotates legacy tensor classes, and a tuple that only return_dict=False would give.
        encoded: tuple[Tensor, ...] = backbone.get_image_features(batch.pixels, batch.grids).pooler_output  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue, reportAssignmentType]
        if len(batch.image_order):
            shown = torch.cat([encoded[index] for index in batch.image_order.tolist()]).to(embeds.dtype)
            embeds = embeds.masked_scatter(batch.image_mask_T[:, None], shown)
        else:
            embeds = embeds + 0 * encoded[0].sum()
        return backbone.language_model(
            inputs_embeds=embeds[None],
            position_ids=batch.position_ids,
            attention_mask={"full_attention": None},  # or transformers would build one of all tokens by all tokens
            use_cache=False,
            offsets=tuple(batch.offsets.tolist()),
        ).last_hidden_state[0]

    def freeze_vision(self) -> None:
        for parameter in self.parameters_by_part()[0]:
            parameter.requires_grad_(False)

    def parameters_by_part(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(vision tower, language model)."""
        vision = list(self.model.model.visual.parameters())
        known = {id(parameter) for parameter in vision}
        return vision, [p for p in self.parameters() if id(p) not in known]
