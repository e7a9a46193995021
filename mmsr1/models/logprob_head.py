"""Log-probs of chosen tokens from hidden states, without ever holding the logits of more than one chunk.

The vocabulary is what fills the memory: 8,192 tokens x 151,936 entries are 4.6 GiB of float32 logits, and as much again
for their gradient. Here logits exist for `chunk` tokens at a time, are computed again in the backward pass, and are
turned into their own gradient in place; the gradient of the head is added straight into the `.grad` that it ends in.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROWS = 32  # of a chunk, whose probabilities exist at the same time


def token_logprobs(
    hidden: Float[Tensor, "N H"], weight: Float[Tensor, "V H"], target: Int[Tensor, "N"], chunk: int
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(log softmax(hidden W^T) at `target`, entropy of that distribution in nats), both float32 and differentiable.

    Peak memory beyond inputs and outputs: a little over one chunk of float32 logits (two if the entropy has a
    gradient).
    A `weight` that already has a `.grad` gets its share added there, in place, and none from autograd.
    """
    return _TokenLogprobs.apply(hidden, weight, target, chunk)  # type: ignore[return-value]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.chunk = chunk
        ctx.weight = weight  # the parameter itself, since its .grad is what the backward pass adds to
        logprob = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normaliser, entropy = torch.empty_like(logprob), torch.empty_like(logprob)
        for part in _parts(len(hidden), chunk):
            logprob[part], normaliser[part], entropy[part] = _chunk_statistics(hidden[part], weight, target[part])
        ctx.save_for_backward(hidden, target, normaliser, entropy)
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_logprob, d_entropy = grads
        hidden, target, normaliser, entropy = ctx.saved_tensors
        weight: Tensor = ctx.weight
        d_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        for part in _parts(len(hidden), ctx.chunk):
            slope = _logit_gradient(
                (hidden[part] @ weight.t()).float(),
                target[part],
                normaliser[part],
                entropy[part],
                None if d_logprob is None else d_logprob[part],
                None if d_entropy is None else d_entropy[part],
            ).to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(slope, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight.addmm_(slope.t(), hidden[part])
            del slope  # or it would still be there when the next chunk's logits are made
        return d_hidden, None if d_weight is weight.grad else d_weight, None, None


def _parts(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _chunk_statistics(
    hidden: Float[Tensor, "C H"], weight: Float[Tensor, "V H"], target: Int[Tensor, "C"]
) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"], Float[Tensor, "C"]]:
    """(log-prob of the target, log sum exp of the logits, entropy). The probabilities, which would be as large as the
    logits, exist for a few rows at a time."""
    logits = (hidden @ weight.t()).float()
    top = logits.amax(-1)
    mass, moment = torch.empty_like(top), torch.empty_like(top)
    for rows in _parts(len(logits), _ROWS):
        shifted = logits[rows].sub_(top[rows, None])
        share = shifted.exp()
        mass[rows] = share.sum(-1)
        moment[rows] = share.mul_(shifted).sum(-1)
    spread = mass.log()
    # With x = logit - top and p = exp(x) / mass: log p = x - log mass, entropy = log mass - sum p x.
    return logits.gather(1, target[:, None])[:, 0] - spread, top + spread, spread - moment / mass


def _logit_gradient(
    logits: Float[Tensor, "C V"],
    target: Int[Tensor, "C"],
    normaliser: Float[Tensor, "C"],
    entropy: Float[Tensor, "C"],
    d_logprob: Float[Tensor, "C"] | None,
    d_entropy: Float[Tensor, "C"] | None,
) -> Float[Tensor, "C V"]:
    """d loss / d logits, in the buffer of `logits`: (1[target] - p) dlogprob - p (log p + entropy) dentropy."""
    log_p = logits.sub_(normaliser[:, None])
    if d_entropy is None:
        slope = log_p.exp_()
        scale = torch.zeros_like(normaliser) if d_logprob is None else -d_logprob
        slope.mul_(scale[:, None])
    else:
        p = log_p.exp()
        slope = log_p.add_(entropy[:, None]).mul_(-d_entropy[:, None])
        if d_logprob is not None:
            slope.sub_(d_logprob[:, None])
        slope.mul_(p)
    if d_logprob is not None:
        slope.scatter_add_(1, target[:, None], d_logprob[:, None])
    return slope
