"""ELMo: two language models that share words, and a task's own mix of their layers."""

import torch
from torch import nn

from onefold.core.batch import TokenBatch
from onefold.models.recurrent.bilm import BiLM, BiLMConfig, ScalarMix
from onefold.models.text_head import TextHeadConfig
from onefold.models.transformer import count_parameters
from onefold.objectives.transfer import BothDirections, reversed_targets

CONFIG = BiLMConfig(vocab=31, width=6, hidden=10, depth=2, context=32, dropout=0.0)
TASK = {"classes": 3, "classifier": {"lstm": 5, "pooling": "max", "dropout": 0.0}}


def rough(config: BiLMConfig = CONFIG) -> BiLM:
    torch.manual_seed(0)
    model = config.build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 31, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_each_direction_is_a_stack_of_torchs_projected_lstms_with_a_residual():
    model, ids = rough(), tokens(2, 7)
    for way, found in zip(("forwards", "backwards"), model.directions(model.features(ids))):
        back = way == "backwards"
        x = model.embed(ids.flip(1) if back else ids)
        for i, block in enumerate(model.blocks):
            reference = nn.LSTM(6, 10, batch_first=True, proj_size=6)
            reference.load_state_dict({f"{name}_l0": tensor for name, tensor in block[way].named_parameters()})
            y, _ = reference(x)
            x = y + x if i else y
        torch.testing.assert_close(found, x.flip(1) if back else x)


@torch.no_grad()
def test_neither_direction_sees_what_it_is_asked():
    model, ids = rough(), tokens(1, 9)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 31
    (ahead, behind), (ahead2, behind2) = (model.directions(model.features(t)) for t in (ids, changed))
    assert torch.equal(ahead[:, :5], ahead2[:, :5])
    assert torch.equal(behind[:, 6:], behind2[:, 6:])
    assert not torch.equal(ahead[:, 5], ahead2[:, 5])
    assert not torch.equal(behind[:, 5], behind2[:, 5])


def batch(segments: torch.Tensor | None) -> TokenBatch:
    ids = tokens(2, 8)
    weights = torch.ones(2, 8) if segments is None else (segments < 2).float()
    return TokenBatch(tokens=ids[:, :], targets=ids.roll(-1, 1), weights=weights, segments=segments)


def test_the_objective_is_the_sum_of_two_plain_cross_entropies():
    model = rough()
    segments = torch.tensor([[0] * 5 + [1] * 3, [0] * 2 + [1] * 4 + [2] * 2])  # the last two are padding
    packed, objective = batch(segments), BothDirections().build()
    loss, counts = objective(model, packed, 0), objective.counts(packed)
    ahead = behind = 0.0
    asked = 0
    for row, (begin, end) in ((0, (0, 5)), (0, (5, 8)), (1, (0, 2)), (1, (2, 6))):
        text = packed.tokens[row : row + 1, begin:end]
        forwards, backwards = model.directions(model.features(text))
        ahead += nn.functional.cross_entropy(model.head(forwards[0]), packed.targets[row, begin:end], reduction="sum")
        behind += nn.functional.cross_entropy(model.head(backwards[0, 1:]), text[0, :-1], reduction="sum")
        asked += end - begin - 1
    torch.testing.assert_close(loss.terms["ce"].sum, ahead)
    torch.testing.assert_close(loss.terms["backward"].sum, behind)
    assert (counts["ce"], counts["backward"]) == (14, asked) == tuple(t.count for t in loss.terms.values())
    (loss.terms["ce"].sum + loss.terms["backward"].sum).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert reversed_targets(batch(None)).weights.sum() == 14


@torch.no_grad()
def test_the_mix_is_equation_1():
    mix, layers = ScalarMix(3), [torch.randn(2, 4, 6) for _ in range(3)]
    torch.testing.assert_close(mix(layers), sum(layers) / 3)
    mix.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    mix.gamma.fill_(3.0)
    shares = mix.weight.softmax(0)
    torch.testing.assert_close(mix(layers), 3 * (shares[0] * layers[0] + shares[1] * layers[1] + shares[2] * layers[2]))
    model = rough(CONFIG.but(TASK))
    torch.testing.assert_close(model.features(tokens(2, 5)), model.mix(model.layers(tokens(2, 5))))


def test_a_task_moves_its_own_part_only_unless_told_otherwise():
    ids = tokens(4, 6)
    segments = torch.tensor([[0] * 6] * 3 + [[0] * 2 + [1] * 4])
    for frozen in (True, False):
        model = CONFIG.but({**TASK, "frozen": frozen}).build()
        model.classify(model.features(ids, None, segments), segments).square().sum().backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        own = {name for name, _ in model.named_parameters() if name.startswith(("mix.", "classifier."))}
        assert own <= moved
        assert (moved == own) == frozen


def test_a_language_model_becomes_a_task_and_back():
    old, new = rough(), CONFIG.but(TASK).build()
    new.load_state_dict(new.adopt(old.state_dict()))
    assert torch.equal(new.blocks[1]["backwards"].weight_hr, old.blocks[1]["backwards"].weight_hr)
    assert old.adopt(new.state_dict()).keys() == old.state_dict().keys()


def test_the_papers_size():
    """2 layers of 4096 cells projected to 512, each way: 68.7M weights (the released model, TensorFlow, has one bias
    vector a layer where torch has two)."""
    config = BiLMConfig(vocab=10, classifier=TextHeadConfig())
    layer = 4 * 4096 * (512 + 512 + 2) + 512 * 4096
    assert count_parameters(config) == 4 * layer + 10 * 512 + 10 * 513
