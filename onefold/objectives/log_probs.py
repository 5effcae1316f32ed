"""Log-probabilities of given tokens, without ever holding the logits of a whole batch.

A loss that is no plain sum over tokens (preferences, policies) needs the log-probability of each answer before it knows
how much each token's gradient counts. So logits are computed for one chunk of tokens at a time, and again for the
backward pass; where the head does not learn (adapters), what the features' gradient needs is kept instead, and nothing
is computed twice.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onefold.core.batch import RolloutBatch
from onefold.core.errors import UserError
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.models.transformer import DecoderConfig
from onefold.nn.linear import linear
from onefold.objectives.cross_entropy import chunks


def answer_log_probs(
    model: nn.Module,
    tokens: Int[Tensor, "R T"],
    places: Int[Tensor, "R K"],
    targets: Int[Tensor, "R K"],
    weights: Float[Tensor, "R K"],
) -> Float[Tensor, " R"]:
    """Σ_k weight · log p(target k | tokens up to place k) of each row, in nats. Padding stands behind a row, so that no
    token sees it.

    Errors: UserError for a model that does not read forwards only.
    """
    if not reads_forwards(model):
        raise UserError("answers have probabilities in models that go on with a text: begin with a decoder")
    _check_steady(model)
    features = model.features(tokens)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(places)
    where, which, counted = (rows * tokens.shape[1] + places).flatten(), targets.flatten(), weights.flatten()
    if not tokens.is_meta:  # there, shapes must not depend on what a batch holds
        kept = counted.nonzero()[:, 0]
        rows, where, which, counted = rows.flatten()[kept], where[kept], which[kept], counted[kept]
    read, head, bias = model.readout(features.flatten(0, 1).index_select(0, where))
    found = linear_log_probs(read, head, which, bias) * counted
    return found.new_zeros(len(tokens)).index_add(0, rows.flatten(), found)


def token_log_probs(model: nn.Module, features: Float[Tensor, "B T D"], batch: RolloutBatch) -> Float[Tensor, "B T"]:
    """log p(target | what stands before it) where the batch has weights, else 0; p is softmax(logits / temperature).

    Errors: UserError for a model that says something else while it learns.
    """
    _check_steady(model)
    read, head, bias = model.readout(features.flatten(0, 1))
    targets, counted = batch.targets.flatten(), batch.weights.flatten()
    if not counted.is_meta:  # there, shapes must not depend on what a batch holds
        kept = counted.nonzero()[:, 0]
        read, targets = read.index_select(0, kept), targets[kept]
    if batch.temperature != 1.0:
        read, bias = read / batch.temperature, None if bias is None else bias / batch.temperature
    found = linear_log_probs(read, head, targets, bias)
    if not counted.is_meta:
        found = found.new_zeros(len(counted)).index_copy(0, kept, found)
    return found.view(batch.targets.shape)


def reads_forwards(model: nn.Module) -> bool:
    """Whether no token sees those behind it."""
    return isinstance(model.config, DecoderConfig | RecurrentConfig)


def _check_steady(model: nn.Module) -> None:
    """What a model says while it learns is compared with what it, or another, said while it did not."""
    if any(getattr(block, "route", None) is not None for block in getattr(model, "blocks", ())):
        raise UserError(
            "a mixture of depths (model.block.route) looks at later tokens while it learns, so its log-probabilities "
            "are others than when it writes: take a model without routes"
        )


def linear_log_probs(
    features: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    targets: Int[Tensor, " N"],
    bias: Float[Tensor, " V"] | None = None,
) -> Float[Tensor, " N"]:
    """log softmax(head · features + bias)[target] of each row, in fp32."""
    return _LinearLogProbs.apply(features, head, targets, bias)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, head, targets, bias):
        wants_features, wants_head, _, wants_bias = ctx.needs_input_grad
        found = torch.empty(len(features), dtype=torch.float32, device=features.device)
        normalisers = torch.empty_like(found)
        ctx.device, ctx.autocast = features.device.type, _autocast_now(features.device.type)
        ctx.ahead = wants_features and not wants_head and not wants_bias
        slopes = torch.empty_like(features) if ctx.ahead else None  # of each log-probability by its features
        for part in chunks(features, head):
            x, y = features[part], targets[part, None]
            logits = linear(x, head, bias).float()
            normalisers[part] = logits.logsumexp(-1)
            found[part] = logits.gather(1, y)[:, 0] - normalisers[part]
            if slopes is not None:
                pull = logits.sub_(normalisers[part, None]).exp_().neg_()
                slopes[part] = linear(_onehot_added(pull, y, 1.0).to(x.dtype), head.T)
        if ctx.ahead:
            ctx.save_for_backward(slopes)
        else:
            ctx.save_for_backward(features, head, targets, bias, normalisers)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        if ctx.ahead:
            (slopes,) = ctx.saved_tensors
            return slopes * gradient[:, None].to(slopes.dtype), None, None, None
        features, head, targets, bias, normalisers = ctx.saved_tensors
        wants_features, wants_head, _, wants_bias = ctx.needs_input_grad
        d_features = torch.empty_like(features) if wants_features else None
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if wants_head else None
        d_bias = torch.zeros(len(head), dtype=torch.float32, device=head.device) if wants_bias else None
        with _autocast_as(ctx.device, ctx.autocast):  # logits as they were: else normalisers are not theirs
            for part in chunks(features, head):
                x, y, g = features[part], targets[part, None], gradient[part, None]
                pull = linear(x, head, bias).float().sub_(normalisers[part, None]).exp_().mul_(-g)
                d_logits = _onehot_added(pull, y, g).to(x.dtype)  # g · (onehot - softmax)
                if d_features is not None:
                    d_features[part] = linear(d_logits, head.T)
                if d_head is not None:
                    d_head += (d_logits.T @ x).float()
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
        return (
            d_features,
            None if d_head is None else d_head.to(head.dtype),
            None,
            None if d_bias is None else d_bias.to(bias.dtype),
        )


def _autocast_now(kind: str) -> tuple[torch.dtype, bool] | None:
    """The mixed precision that is in force; None: devices of this kind know none."""
    known = torch.amp.is_autocast_available(kind)
    return (torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) if known else None


def _autocast_as(kind: str, was: tuple[torch.dtype, bool] | None) -> AbstractContextManager:
    """That of a forward pass again: a backward pass runs outside of it."""
    return torch.autocast(kind, *was) if was else nullcontext()


def _onehot_added(pull: Tensor, targets: Tensor, weight: Tensor | float) -> Tensor:
    return pull.scatter_add_(1, targets, torch.ones_like(targets, dtype=pull.dtype) * weight)
