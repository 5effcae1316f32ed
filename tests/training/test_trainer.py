"""The loop, against a plain PyTorch loop and through its special cases."""

import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import onefold.training.run as runs
from onefold.core.errors import UserError
from onefold.objectives.base import Loss, Term
from onefold.objectives.language import NextToken
from onefold.training.optimizers.spikes import SkipConfig, SpikeRule
from onefold.training.run import train

PLAIN = {"model.block.dropout": 0.0, "optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.2}}


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result.checkpoint / "model.safetensors")


def losses(result) -> list[float]:
    return [record["loss"] for record in result.log]


def objective_as(monkeypatch, loss) -> None:
    """Let every run minimise `loss(model, batch, step)`."""
    monkeypatch.setattr(NextToken, "build", lambda self, frozen=None: loss)


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_it_is_a_plain_loop(make_run, micro_batch):
    """Global means over unequal micro-batches (3 + 3 + 2 rows, some padded), clipping, decay and schedule."""
    schedule = {"kind": "linear", "warmup": 2}
    run = make_run({**PLAIN, "trainer.micro_batch": micro_batch, "trainer.clip": 0.5, "trainer.schedule": schedule})
    result = train(run)

    dataset = run.data.prepare(run.out / "data")
    torch.manual_seed(run.seed)
    model = run.model.build()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    expected, norms = [], []
    with dataset.loader("train", 8, run.seed) as loader:
        for step, batch in zip(range(12), loader):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * ((step + 1) / 2 if step < 2 else 1 - (step - 2) / 10)
            logits = model(batch.tokens, batch.positions, batch.segments)
            nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
            loss = (nll * batch.weights.flatten()).sum() / batch.weights.sum()
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
            optimizer.step()
            expected.append(loss.item())
    assert losses(result) == pytest.approx(expected, abs=2e-5)
    assert [r["grad_norm"] for r in result.log] == pytest.approx(norms, rel=1e-3)
    assert [r["lr"] for r in result.log][:4] == pytest.approx([0.005, 0.01, 0.01, 0.009])
    for name, tensor in weights(result).items():
        torch.testing.assert_close(tensor, model.get_parameter(name).detach(), atol=2e-4, rtol=0)


def two_counts(model, batch, step):
    """A term averaged over tokens and one over rows."""
    logits = model(batch.tokens, batch.positions, batch.segments)
    nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    first = logits[:, 0].square().mean(-1)
    return Loss(
        {
            "ce": Term((nll * batch.weights.flatten()).sum(), batch.weights.sum()),
            "first": Term(first.sum(), torch.tensor(float(batch.rows)), weight=0.3),
        }
    )


def test_terms_with_counts_of_their_own(make_run, monkeypatch):
    def with_counts(model, batch, step):
        return two_counts(model, batch, step)

    with_counts.counts = lambda batch: {"ce": batch.weights.sum(), "first": torch.tensor(float(batch.rows))}
    objective_as(monkeypatch, with_counts)
    whole = train(make_run({**PLAIN, "trainer.micro_batch": 8}))
    parts = train(make_run({**PLAIN, "trainer.micro_batch": 3, "out": make_run().out / "parts"}))
    assert losses(whole) == pytest.approx(losses(parts), abs=2e-5)
    for record in whole.log:
        assert record["loss"] == pytest.approx(record["ce"] + 0.3 * record["first"])


def test_terms_with_counts_of_their_own_must_say_them(make_run, monkeypatch):
    objective_as(monkeypatch, two_counts)
    with pytest.raises(UserError, match="counts"):
        train(make_run(PLAIN))


def test_a_step_that_is_not_finite_changes_nothing(make_run, monkeypatch, capsys):
    honest = NextToken().build()

    def poisoned(model, batch, step):
        loss = honest(model, batch, step)
        if step != 11:
            return loss
        return Loss({"ce": replace(loss.terms["ce"], sum=loss.terms["ce"].sum * float("nan"))})

    clean = train(make_run({"trainer.steps": 11, "trainer.schedule": {"kind": "constant"}}))
    before = weights(clean)
    objective_as(monkeypatch, poisoned)
    result = train(make_run({"trainer.steps": 12, "trainer.schedule": {"kind": "constant"}}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(result).items())
    assert result.log[-1]["loss"] is None
    assert "not finite" in result.log[-1]["skipped"]
    assert json.loads((result.checkpoint / "state" / "state.json").read_text())["skipped"] == 1
    assert "step 12 skipped: the loss is not finite" in capsys.readouterr().err


def test_it_gives_up_after_many_skipped_steps(make_run, monkeypatch):
    honest = NextToken().build()

    def poisoned(model, batch, step):
        loss = honest(model, batch, step)
        return loss if step < 5 else Loss({"ce": replace(loss.terms["ce"], sum=loss.terms["ce"].sum / 0.0)})

    objective_as(monkeypatch, poisoned)
    with pytest.raises(UserError, match="3 steps in a row were of no use"):
        train(make_run({"trainer.skip.patience": 3}))
    assert [f.name for f in (make_run().out / "checkpoints").iterdir()] == ["4"]


def test_what_a_spike_is():
    rule = SpikeRule(SkipConfig(window=8, sigmas=3))
    values = [2.0, 2.1, 1.9, 2.0]
    assert all(rule.judge(v, 1.0) is None for v in values)
    assert rule.judge(2.15, 1.0) is None  # within a tenth of the mean
    assert "loss 3" in rule.judge(3.0, 1.0)
    assert "gradient norm 9" in rule.judge(2.0, 9.0)
    assert "gradient is not finite" in rule.judge(2.0, float("inf"))
    assert [rule.judge(3.0, 1.0) is None for _ in range(8)][-1]  # a level that stays up is no spike
    assert len(rule.losses) == 8


def test_evaluation_sees_every_held_out_token_and_disturbs_nothing(make_run):
    often = train(make_run({"trainer.evaluate_every": 1, "trainer.steps": 6}))
    never = train(make_run({"trainer.steps": 6, "data.held_out": 0.1, "out": make_run().out / "never"}))
    assert losses(often) != losses(never)  # other files held out: other data
    never = train(make_run({"trainer.steps": 6, "out": make_run().out / "never2"}))
    assert losses(often) == losses(never)

    run = often.run
    dataset = run.data.prepare(run.out / "data")
    model = run.model.build()
    model.load_state_dict(weights(often) | {"unembed.weight": weights(often)["embed.token.weight"]})
    nats = tokens = 0.0
    model.eval()
    with torch.no_grad():
        for document in dataset.text("held_out"):
            ids = torch.tensor(
                [[dataset.tokenizer.start, *dataset.tokenizer.encode(document.text), dataset.tokenizer.end]]
            )
            for begin in range(0, ids.shape[1] - 1, 24):
                piece = ids[:, begin : begin + 25]
                nats += F.cross_entropy(model(piece[:, :-1])[0], piece[0, 1:], reduction="sum").item()
                tokens += piece.shape[1] - 1
    found = often.log[-1]["held_out"]
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / dataset.bytes("held_out"), rel=1e-5)


def test_early_stopping_keeps_the_best(make_run, monkeypatch):
    """A loss that turns back up after step 4."""
    honest = NextToken().build()

    def turning(model, batch, step):
        term = honest(model, batch, step).terms["ce"]
        return Loss({"ce": term}, {"wish": Term(term.count * abs(step - 4), term.count)})

    objective_as(monkeypatch, turning)
    result = train(
        make_run({"trainer.evaluate_every": 1, "trainer.metric": "wish", "trainer.patience": 3, "trainer.keep": 1})
    )
    assert (result.status, result.step) == ("stopped early", 7)
    assert result.best == {"step": 4, "metric": "wish", "value": 0.0}
    folder = result.out / "checkpoints"
    assert {f.name for f in folder.iterdir()} == {"4", "7", "best.json"}
    assert json.loads((folder / "best.json").read_text())["step"] == 4
    assert train(result.run).step == 7  # finished is finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_to_the_same_bits(make_run, monkeypatch, number, capsys):
    honest, pending = NextToken().build(), []

    def interrupted(model, batch, step):
        if step == 5 and pending:
            os.kill(os.getpid(), pending.pop())
        return honest(model, batch, step)

    objective_as(monkeypatch, interrupted)
    whole = train(make_run({"trainer.evaluate_every": 5, "out": make_run().out / "whole"}))
    pending.append(number)
    first = train(make_run({"trainer.evaluate_every": 5}))
    assert (first.status, first.step) == ("interrupted", 6)
    assert "the same command goes on from there" in capsys.readouterr().err
    second = train(make_run({"trainer.evaluate_every": 5}))
    assert (second.status, second.step) == ("finished", 12)
    assert "from step 6 of 12" in capsys.readouterr().err
    assert [(r["step"], r["resumed"]) for r in second.log if "resumed" in r] == [(7, 6)]
    timing = {"seconds", "tokens_per_second", "mfu", "waiting", "resumed"}
    plain = [[{k: v for k, v in r.items() if k not in timing} for r in result.log] for result in (whole, second)]
    assert plain[0] == plain[1]
    for file in ("model.safetensors", "state/optimizer.safetensors"):
        assert (whole.checkpoint / file).read_bytes() == (second.checkpoint / file).read_bytes()


def test_a_second_interrupt_aborts(make_run, monkeypatch):
    honest = NextToken().build()

    def twice(model, batch, step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return honest(model, batch, step)

    objective_as(monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt):
        train(make_run())
    assert {f.name for f in (make_run().out / "checkpoints").iterdir()} == {"4"}


def test_a_time_limit_ends_with_a_cool_down(make_run, monkeypatch):
    """By a clock that goes on by 10 ms whenever it is read: four times a step, and once before the first."""
    ticks = itertools.count()
    monkeypatch.setattr("onefold.training.trainer.time.perf_counter", lambda: next(ticks) / 100)
    limit = {"trainer.steps": 1000, "trainer.time_limit": 2.0, "trainer.schedule": {"kind": "constant", "warmup": 0}}
    result = train(make_run(limit))
    assert result.status == "finished"
    assert 45 <= result.step <= 50
    assert 1.75 < result.log[-1]["seconds"] <= 2.0
    falling = [r["lr"] / 0.02 for r in result.log if r["lr"] < 0.02]
    n = len(falling) + 1
    assert 8 <= n <= 11  # a fifth of the time
    assert falling == pytest.approx([k / n for k in range(n - 1, 0, -1)])
    assert train(result.run).status == "finished"


def test_bf16_autocast(make_run):
    plain = train(make_run({**PLAIN, "trainer.steps": 4}))
    mixed = train(make_run({**PLAIN, "trainer.steps": 4, "trainer.precision": "bf16", "out": make_run().out / "bf16"}))
    assert losses(plain) != losses(mixed)
    assert losses(plain) == pytest.approx(losses(mixed), rel=0.01)
    assert weights(mixed)["embed.token.weight"].dtype == torch.float32


def test_tensorboard(make_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(make_run({"trainer.tensorboard": True, "trainer.steps": 3}))
    events = EventAccumulator(str(result.out / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses(result))
    assert len(events.Scalars("held_out/loss")) == 1


def test_records_are_complete(make_run):
    result = train(make_run({"trainer.log_every": 5, "trainer.steps": 12}))
    assert [r["step"] for r in result.log] == [5, 10, 12]
    for record in result.log:
        assert {"step", "loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second", "mfu"} <= record.keys()
    assert [r["tokens"] for r in result.log] == [5 * 8 * 24, 10 * 8 * 24, 12 * 8 * 24]
    assert runs.read_log(result.out / "log.jsonl") == result.log


def test_an_unknown_metric_costs_nothing(make_run, capsys):
    result = train(make_run({"trainer.metric": "accuracy", "trainer.steps": 2}))
    assert "trainer.metric=accuracy is not measured" in capsys.readouterr().err
    assert result.best["metric"] == "loss"
