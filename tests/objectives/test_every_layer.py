"""The loss of every layer is the plain weighted sum, with its gradients; evaluations tell what each layer says."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onefold.core.batch import TokenBatch
from onefold.core.errors import UserError
from onefold.models import encoder_families, families
from onefold.objectives.every_layer import EveryLayer


def small():
    changes = {"vocab": 31, "width": 16, "depth": 3, "context": 8, "block.mixer.heads": 2, "block.ffn.width": 16}
    torch.manual_seed(0)
    return families.pythia().but(changes).build()


def some(asked: bool) -> TokenBatch:
    torch.manual_seed(1)
    weights = torch.zeros(2, 8)
    weights[:, [2, 5]] = torch.rand(2, 2)
    columns = torch.tensor([[2, 5], [5, 2]]) if asked else None
    return TokenBatch(
        tokens=torch.randint(0, 31, (2, 8)), targets=torch.randint(0, 31, (2, 8)), weights=weights, asked=columns
    )


def as_deep_as(model, depth: int, tokens):
    """Logits of the model without its later layers."""
    shorter = small()
    shorter.load_state_dict(model.state_dict())
    shorter.blocks = nn.ModuleList(shorter.blocks[:depth])
    return shorter(tokens)


@pytest.mark.parametrize("asked", [False, True])
def test_equals_models_of_every_depth_with_gradients(asked):
    model, batch = small(), some(asked)
    loss = EveryLayer().build()(model, batch, 0)
    loss.terms["every_layer"].sum.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    said = []
    for layer in model.layers(batch.tokens):
        nll = F.cross_entropy(model.head(layer).flatten(0, 1), batch.targets.flatten(), reduction="none")
        said.append((nll * batch.weights.flatten()).sum())
    plain = (1 * said[0] + 2 * said[1] + 3 * said[2]) / 6
    plain.backward()
    torch.testing.assert_close(loss.terms["every_layer"].sum, plain)
    torch.testing.assert_close(found, {name: p.grad for name, p in model.named_parameters()})
    for depth in (1, 2, 3):
        torch.testing.assert_close(
            model.head(model.layers(batch.tokens)[depth - 1]), as_deep_as(model, depth, batch.tokens)
        )
    with torch.no_grad():
        judged = EveryLayer().build()(model.eval(), batch, 0)
    torch.testing.assert_close(judged.terms["every_layer"].sum, plain.detach())
    torch.testing.assert_close(judged.metrics["ce_layers"].sum, torch.stack(said).detach())
    assert judged.metrics["ce"].sum == judged.metrics["ce_layers"].sum[-1]


def test_models_whose_layers_cannot_be_asked_are_told():
    with torch.device("meta"):
        encoder = encoder_families.bert().build()
    for model in (nn.Linear(2, 2), encoder):
        with pytest.raises(UserError, match="use next_token"):
            EveryLayer().build()(model, some(False), 0)
