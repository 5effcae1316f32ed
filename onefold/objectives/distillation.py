"""Knowledge distillation: a student learns what a teacher says of every token, not only which one came.

    teacher, frozen → p = softmax(logits / τ)      student → q = softmax(logits / τ)      loss = D(p, q), and the data

Logits of both exist for one chunk of tokens at a time, where the loss and its gradients are taken together.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from onefold.core.batch import TokenBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.nn.linear import linear
from onefold.objectives.base import Loss, Term
from onefold.objectives.cross_entropy import chunks
from onefold.objectives.language import token_loss

Divergence = Literal["forward", "reverse"]
Readout = tuple[Tensor, Tensor, Tensor | None]  # features [N, D], head [V, D], bias [V]


class Distillation(Config):
    """soft · τ² · D + hard · cross-entropy of the data's targets, the mean over tokens of weight 1, in nats.

    forward: D = KL(p ‖ q), which with τ² makes gradients as large at every temperature (Hinton et al. 2015, arXiv
    1503.02531, section 2). reverse: KL(q ‖ p), which leaves out what the teacher finds unlikely instead of covering
    all that it says; MiniLLM (arXiv 2306.08543, equation 1), here token by token on the data's texts instead of by
    policy gradients on the student's own.

    The teacher is `frozen.teacher`, and reads what the student reads. Metrics: `kl` (D) and `ce` (nats per token).

    From step `until` on only the data teach, by hard · cross-entropy, and the teacher is not asked: staged distillation
    (DeepSpeed-MoE, arXiv 2201.05596, section 4.2), for a student too small to say all that its teacher says. The loss
    means something else then: let trainer.metric be ce.
    """

    reads: ClassVar = TokenBatch
    loss_unit: ClassVar = "nats per token"
    kind: Literal["distillation"] = "distillation"
    divergence: Divergence = "forward"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # τ, of both
    hard: Annotated[float, Field(ge=0)] = 0.0
    soft: Annotated[float, Field(gt=0)] | None = None  # None: what `hard` leaves of 1
    until: Annotated[int, Field(ge=1)] | None = None  # None: the teacher stays to the end

    @model_validator(mode="after")
    def _teaches(self) -> "Distillation":
        if self.soft is None and self.hard >= 1:
            raise ValueError(
                "hard leaves nothing for the teacher to say: set it below 1, or soft to the teacher's weight"
            )
        if self.until is not None and not self.hard:
            raise ValueError(
                "from step `until` on there is nothing to learn: set hard to the weight of the data's targets"
            )
        return self

    def build(self, frozen: Mapping[str, Any] | None = None) -> Callable[[nn.Module, TokenBatch, int], Loss]:
        teacher = (frozen or {}).get("teacher")
        if teacher is None:
            raise UserError("objective distillation learns from a teacher: name its model with frozen.teacher=PATH")
        if not hasattr(teacher, "readout"):
            raise UserError("frozen.teacher says nothing of tokens: take a model that was trained to predict them")
        return partial(self._loss, teacher.eval())

    def _loss(self, teacher: nn.Module, model: nn.Module, batch: TokenBatch, step: int) -> Loss:
        if self.until is not None and step >= self.until:
            ce = token_loss(model, model.features(*batch.inputs()), batch).terms["ce"]
            metrics = {"ce": Term(ce.sum.detach(), ce.count)}
            return Loss({"distillation": Term(self.hard * ce.sum, ce.count)}, metrics)
        features, targets, weights = model.features(*batch.inputs()), batch.targets.flatten(), batch.weights.flatten()
        with torch.no_grad():
            if batch.tokens.is_meta:  # only what it costs is asked
                teacher = _outline(teacher)
            shown = teacher.features(*batch.inputs()).flatten(0, 1)
        features = features.flatten(0, 1)
        if not batch.tokens.is_meta:  # there, shapes must not depend on what a batch holds
            kept = weights.nonzero()[:, 0]  # the others would cost as much and add nothing
            if len(kept) < len(weights):
                features, shown = features.index_select(0, kept), shown.index_select(0, kept)
                targets, weights = targets[kept], weights[kept]
        with torch.no_grad():
            said = teacher.readout(shown)
        settings = self.temperature, self.divergence, self.hard, self.soft
        total, kl, ce = distillation_loss(model.readout(features), said, targets, weights, *settings)
        count = batch.weights.sum()
        return Loss({"distillation": Term(total, count)}, {"kl": Term(kl, count), "ce": Term(ce, count)})


def distillation_loss(
    student: Readout,
    teacher: Readout,
    targets: Int[Tensor, " N"],
    weights: Float[Tensor, " N"],
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    hard: float = 0.0,
    soft: float | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Σ weight · (soft · τ² · D + hard · cross-entropy), and Σ weight · D, Σ weight · cross-entropy to look at.

    soft: 1 - hard where it is None. All are fp32 scalars; only the first carries a gradient, to the student. Errors:
    UserError when the two have different numbers of tokens.
    """
    ours, theirs = student[1].shape[0], teacher[1].shape[0]
    if ours != theirs:
        raise UserError(
            f"the teacher tells {theirs} tokens apart, the student {ours}: distillation needs one vocabulary, "
            "so take a teacher with the student's tokenizer"
        )
    soft = 1 - hard if soft is None else soft
    return _Distillation.apply(*student, *teacher, targets, weights.float(), temperature, divergence, hard, soft)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, features, head, bias, shown, their_head, their_bias, targets, weights, temperature, which, hard, soft
    ):
        wants_features, wants_head, wants_bias = ctx.needs_input_grad[:3]
        d_features = torch.empty_like(features) if wants_features else None
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if wants_head else None
        d_bias = torch.zeros(bias.shape, dtype=torch.float32, device=head.device) if wants_bias else None
        total, kl, ce = (features.new_zeros((), dtype=torch.float32) for _ in range(3))
        for part in chunks(features, head, models=2):
            x, y, w = features[part], targets[part, None], weights[part, None]
            logits = linear(x, head, bias).float()
            log_q = (logits / temperature).log_softmax(-1)
            log_p = (linear(shown[part], their_head, their_bias).float() / temperature).log_softmax(-1)
            q = log_q.exp()
            if which == "forward":
                p = log_p.exp()
                each = (p * log_p.sub_(log_q)).sum(-1, keepdim=True)
                slope = q.sub_(p)  # τ · d KL(p ‖ q) / d logits
            else:
                gap = log_q.sub_(log_p)
                each = (q * gap).sum(-1, keepdim=True)
                slope = q.mul_(gap.sub_(each))  # τ · d KL(q ‖ p) / d logits
            normaliser = logits.logsumexp(-1, keepdim=True)
            nll = normaliser - logits.gather(1, y)
            total = total + (w * (soft * temperature**2 * each + hard * nll)).sum()
            kl, ce = kl + (w * each).sum(), ce + (w * nll).sum()
            if not any(ctx.needs_input_grad[:3]):
                continue
            slope *= soft * temperature * w
            if hard:
                slope += hard * w * logits.sub_(normaliser).exp_()
                slope.scatter_add_(1, y, -hard * w)
            slope = slope.to(x.dtype)
            if d_features is not None:
                d_features[part] = linear(slope, head.T)
            if d_head is not None:
                d_head += slope.T @ x
            if d_bias is not None:
                d_bias += slope.sum(0)
        ctx.save_for_backward(
            d_features,
            None if d_head is None else d_head.to(head.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(kl, ce)
        return total, kl, ce

    @staticmethod
    def backward(ctx, gradient, *_):
        found = (None if d is None else d * gradient for d in ctx.saved_tensors)
        return *found, *(None,) * 9


def _outline(model: nn.Module) -> nn.Module:
    """The same model on the meta device: shapes and no content, nor memory."""
    held = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, held | {id(b): b.to("meta") for b in model.buffers()})
