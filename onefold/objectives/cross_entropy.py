"""Cross-entropy from features, without ever holding the logits of a whole batch.

A batch of 16k tokens over a vocabulary of 128k has 8 GB of logits in fp32. Here they exist for one chunk of tokens at
a time: its loss and the gradients of features and head are taken together, so nothing is computed twice either.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from onefold.nn.linear import linear

CHUNK = {"cpu": 2**20}  # logits held at once: what a CPU's cache keeps near, and elsewhere…
CHUNK_ELSEWHERE = 2**26  # …256 MB in fp32
FEWEST = 128  # tokens of a chunk, however large the vocabulary: products of fewer take their time to read the head


def linear_cross_entropy(
    features: Float[Tensor, "*batch D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, "*batch"],
    weights: Float[Tensor, "*batch"],
    z_loss: float = 0.0,
    bias: Float[Tensor, " V"] | None = None,
    smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Σ weight · (-log softmax(head · features + bias)[target]), and Σ weight · z_loss · logsumexp² to look at.

    The second keeps the softmax's normaliser near one (PaLM, arXiv 2204.02311, section 5). Both are fp32 scalars;
    the gradient of the first already contains that of the second, which itself carries none.

    smoothing: the share ε of each target that is spread over all V tokens, ε/V to each (arXiv 1512.00567, section 7).
    The mean of a token's logits is the logit of the head's mean row, so this costs nothing of the vocabulary's size.
    """
    flat = features.reshape(-1, features.shape[-1])
    weights = weights.reshape(-1).float()
    return _LinearCrossEntropy.apply(flat, head, targets.reshape(-1), weights, z_loss, bias, smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, head, targets, weights, z_loss, bias, smoothing):
        wanted = any(ctx.needs_input_grad)
        d_features = torch.empty_like(features) if wanted else None
        trains = ctx.needs_input_grad[1]  # beside adapters the head stays as it is, and its gradient costs a third
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if trains else None
        d_bias = head.new_zeros(len(head), dtype=torch.float32) if wanted and bias is not None else None
        nll, z = features.new_zeros((), dtype=torch.float32), features.new_zeros((), dtype=torch.float32)
        mean, mean_bias = (head.float().mean(0), 0.0 if bias is None else bias.float().mean()) if smoothing else (0, 0)
        for part in chunks(features, head):
            x, y, w = features[part], targets[part, None], weights[part, None]
            logits = linear(x, head, bias).float()
            largest, chosen = logits.amax(-1, keepdim=True), logits.gather(1, y)
            if smoothing:
                spread = (x.float() @ mean + mean_bias)[:, None]
                chosen = (1 - smoothing) * chosen + smoothing * spread
            exponentials = logits.sub_(largest).exp_()  # taken once, for the loss and its gradient
            total = exponentials.sum(-1, keepdim=True)
            lse = largest + total.log()
            nll = nll + (w * (lse - chosen)).sum()
            z = z + z_loss * (w * lse.square()).sum()
            if wanted:
                # d nll = softmax - (1 - ε) onehot - ε / V; d z = 2 · z_loss · lse · softmax
                d_logits = exponentials.mul_(w * (1 + 2 * z_loss * lse) / total)
                d_logits.scatter_add_(1, y, w * (smoothing - 1))
                d_logits = d_logits.to(x.dtype)
                d_features[part] = linear(d_logits, head.T)
                if d_head is not None:
                    d_head += d_logits.T @ x
                if d_bias is not None:
                    d_bias += d_logits.sum(0)
        if wanted and smoothing:  # ε / V, the same for all tokens: of rank one
            each, V = smoothing * weights, head.shape[0]
            d_features -= (each[:, None] * mean).to(x.dtype)
            if d_head is not None:
                d_head -= (each @ features.float()) / V
            if d_bias is not None:
                d_bias -= each.sum() / V
        if wanted:
            d_head = None if d_head is None else d_head.to(head.dtype)
            ctx.save_for_backward(d_features, d_head, None if bias is None else d_bias.to(bias.dtype))
        ctx.mark_non_differentiable(z)
        return nll, z

    @staticmethod
    def backward(ctx, d_nll, _):
        d_features, d_head, d_bias = ctx.saved_tensors
        d_bias = None if d_bias is None else d_bias * d_nll
        d_head = None if d_head is None else d_head * d_nll
        return d_features * d_nll, d_head, None, None, None, d_bias, None


def chunks(features: Float[Tensor, "N D"], head: Float[Tensor, "V D"], models: int = 1) -> list[slice]:
    """Tokens whose logits, by so many models, are held at once."""
    room = CHUNK.get(features.device.type, CHUNK_ELSEWHERE) // models
    size = max(FEWEST, room // head.shape[0])
    return [slice(start, start + size) for start in range(0, len(features), size)]
