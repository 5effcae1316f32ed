"""Losses that modules add to whatever their model is trained for: a mixture of experts in the loop."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from onefold.nn.own_losses import Told, listening
from onefold.objectives.base import Loss, Term
from onefold.training.run import train
from tests.training.processes.test_parallel import weights

GATED = {"kind": "gated", "width": 20}
ROUTER = {"kind": "top_k", "k": 2, "balance": 0.05, "z_loss": 0.01}
EXPERTS = {
    "model.block.ffn": {"kind": "experts", "experts": 4, "expert": GATED, "router": ROUTER},
    "model.block.dropout": 0.0,
    "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.0},
}


def test_the_loop_adds_them_as_a_plain_one_would(make_run):
    """Unequal micro-batches (3 + 3 + 2 rows), each with a balance of its own that weighs as its tokens do."""
    changes = {"trainer.micro_batch": 3, "trainer.steps": 4, "trainer.clip": None, "trainer.skip": None}
    run = make_run({**EXPERTS, **changes, "trainer.schedule": "constant", "trainer.evaluate_every": 4})
    result = train(run)

    dataset = run.data.prepare(run.out / "data")
    torch.manual_seed(run.seed)
    model = run.model.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    with dataset.loader("train", 8, run.seed) as loader:
        for record, batch in zip(result.log, loader, strict=False):
            total, sums, rate = batch.weights.sum(), {"ce": 0.0, "balance": 0.0, "router_z": 0.0}, record["lr"]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            for micro in batch.split(3):
                with listening(model) as told:
                    logits = model(micro.tokens, micro.positions, micro.segments)
                nll = F.cross_entropy(logits.flatten(0, 1), micro.targets.flatten(), reduction="none")
                ce = (nll * micro.weights.flatten()).sum() / total
                share = micro.weights.sum() / total
                own = {n: share * sum(c[0].losses[n][0] for c in told.values()) for n in ("balance", "router_z")}
                (ce + 0.05 * own["balance"] + 0.01 * own["router_z"]).backward()
                sums["ce"] += ce.item()
                for name, value in own.items():
                    sums[name] += value.item()
            optimizer.step()
            assert record["ce"] == pytest.approx(sums["ce"], abs=2e-5)
            assert record["balance"] == pytest.approx(sums["balance"] / 2, abs=2e-5)  # the mean of two layers
            expected = sums["ce"] + 0.05 * sums["balance"] + 0.01 * sums["router_z"]
            assert record["loss"] == pytest.approx(expected, abs=2e-5)
            assert record["dropped"] == 0
            assert record["busiest"] >= 1
    for name, tensor in weights(run, 4).items():
        torch.testing.assert_close(tensor, model.get_parameter(name).detach(), atol=2e-4, rtol=0)

    held_out = result.log[-1]["held_out"]
    assert not {"balance", "busiest"} & set(held_out)
    loads = [held_out[f"load/blocks.{i}.ffn"] for i in range(2)]
    assert [len(load) for load in loads] == [4, 4]
    assert all(sum(load) == pytest.approx(1) for load in loads)


def test_calls_are_averaged_by_what_they_read():
    first = Term(torch.tensor(6.0), torch.tensor(3.0))
    calls = [Told(units, {"balance": (torch.tensor(value), 0.5)}, {}) for units, value in ((10, 1.0), (30, 2.0))]
    other = [Told(5, {"balance": (torch.tensor(4.0), 0.25)}, {"load": torch.tensor([1.0, 0.0])})]
    heard = Loss({"ce": first}).heard({"a": calls, "b": other, "c": []})
    term = heard.terms["balance"]
    assert term.weight * term.sum / term.count == pytest.approx(0.5 * 1.75 + 0.25 * 4)
    assert term.weight == pytest.approx(0.75)
    assert heard.metrics["load/b"].sum.tolist() == [5, 0]
    unlearned = Told(40, {}, {})  # a pass without gradients: the losses of others weigh what they did
    again = Loss({"ce": first}).heard({"a": [*calls, unlearned], "b": other}).terms["balance"]
    assert (again.weight, again.sum) == (term.weight, term.sum)


def test_passes_that_are_repeated_tell_nothing_twice(make_run):
    run = make_run(EXPERTS)
    torch.manual_seed(0)
    model, tokens = run.model.build(), torch.randint(0, 288, (2, 12))
    gradients = []
    for read in (model, lambda ids: checkpoint(model, ids, use_reentrant=False)):
        model.zero_grad()
        with listening(model) as told:
            loss = Loss({"ce": Term(read(tokens).square().sum(), torch.tensor(24.0))}).heard(told)
        sum(term.weight * term.sum / term.count for term in loss.terms.values()).backward()
        assert [len(calls) for calls in told.values()] == [1, 1]
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, repeated in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, repeated)


COMPILED = """
import torch
from torch._dynamo.utils import counters
from onefold.models.families import mixtral
from onefold.nn.own_losses import listening

shape = {"vocab": 61, "width": 24, "depth": 2, "context": 64, "block.mixer": {"heads": 4, "kv_heads": 2}}
torch.manual_seed(0)
model = mixtral().but({**shape, "block.ffn.expert.width": 20}).build()
tokens, found = torch.randint(0, 61, (2, 24)), []
for features in (model.features, torch.compile(model.features, backend="aot_eager")):
    model.zero_grad()
    with listening(model) as told:
        y = features(tokens)
    losses = [call.losses["balance"][0] for calls in told.values() for call in calls]
    (y.square().mean() + sum(losses)).backward()
    found.append([y, *losses, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
assert len(found[0]) > 10
for eager, compiled in zip(*found, strict=True):
    torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4)
print(counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()))
"""


@pytest.mark.slow
def test_compiled_is_eager_and_one_graph():
    """In a process of its own: the compiler does not read functions whose shapes are checked, as tests have them."""
    ended = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["1", "0"]
