"""A run and its folder: what is the same run, what is another, and what a run begins with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import onefold.training.folder as folder
from onefold.core.errors import UserError
from onefold.interop.open import open_model
from onefold.training.run import Run, train


def losses(result) -> list[float]:
    return [record["loss"] for record in result.log]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of 12 steps."""
    from tests.training.conftest import make_corpus, small_run

    base = tmp_path_factory.mktemp("done")
    return train(small_run(make_corpus(base / "text"), base / "out"))


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done.out, tmp_path / "out")
    return done.run.but({"out": str(tmp_path / "out")})


def test_a_run_is_its_json(done):
    assert Run.from_json((done.out / "config.json").read_text()) == done.run


def test_a_finished_run_says_so(copied, capsys):
    result = train(copied)
    assert (result.status, result.step) == ("finished", 12)
    assert "is finished after 12 steps" in capsys.readouterr().err


def test_settings_that_came_up_later_had_their_defaults(copied, done):
    """A folder of an older version goes on after an upgrade."""
    file = copied.out / "config.json"
    old = json.loads(file.read_text())
    del old["model"]["classes"], old["trainer"]["skip"], old["optimizer"]["groups"]
    file.write_text(json.dumps(old))
    longer = train(copied.but({"trainer.steps": 14}))
    assert longer.step == 14
    assert losses(longer)[:12] == losses(done)
    old["model"]["width"] *= 2
    file.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"holds another run; it differs in model\.width"):
        train(copied.but({"trainer.steps": 15}))


def test_more_steps_go_on(copied, done, capsys):
    longer = train(copied.but({"trainer.steps": 20}))
    assert longer.step == 20
    told = capsys.readouterr().err
    assert "from step 12 of 20" in told
    assert "learning rate goes on at 100% of its peak instead of 0%" in told  # WSD had cooled down
    assert losses(longer)[:12] == losses(done)
    assert json.loads((copied.out / "config.json").read_text())["trainer"]["steps"] == 20


def test_a_constant_schedule_does_not_notice_the_stop(make_run):
    constant = {"trainer.schedule": {"kind": "constant", "warmup": 3}}
    whole = train(make_run({**constant, "trainer.steps": 10, "out": make_run().out / "whole"}))
    train(make_run({**constant, "trainer.steps": 6}))
    longer = train(make_run({**constant, "trainer.steps": 10}))
    assert losses(longer) == losses(whole)
    assert (longer.checkpoint / "model.safetensors").read_bytes() == (
        whole.checkpoint / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"optimizer.lr": 0.5}, r"optimizer\.lr \(0\.02 there, 0\.5 here\)"),
        ({"model.block.ffn.width": 48}, r"model\.block\.ffn\.width"),
        ({"trainer.batch": 4}, r"trainer\.batch"),
        ({"data.held_out": 0.1}, r"data\.held_out"),
        ({"optimizer": {"kind": "adamw"}}, r"optimizer\.kind"),
    ],
)
def test_another_configuration_is_refused(copied, change, named):
    before = {f: f.stat().st_mtime_ns for f in copied.out.rglob("*") if f.name != ".lock"}
    with pytest.raises(UserError, match=named):
        train(copied.but(change))
    assert {f: f.stat().st_mtime_ns for f in copied.out.rglob("*") if f.name != ".lock"} == before


def test_what_does_not_matter_is_not_another_configuration(copied, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(copied.data.sources[0].path, moved)
    free = {"trainer.log_every": 3, "trainer.keep": 2, "trainer.micro_batch": 2, "trainer.evaluate_every": 2}
    assert train(copied.but({**free, "trainer.steps": 14, "data.sources": [str(moved)]})).step == 14


def test_other_data_are_refused(copied, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(copied.data.sources[0].path, changed)
    (changed / "3.txt").write_text("something else entirely")
    with pytest.raises(UserError, match="data have changed"):
        train(copied.but({"trainer.steps": 14, "data.sources": [str(changed)]}))


def test_a_damaged_config_is_one_line(copied):
    (copied.out / "config.json").write_text('{"trainer": ')
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        train(copied)


def test_only_one_at_a_time(copied):
    with folder.claimed(copied.out, copied), pytest.raises(UserError, match="another process is training"):
        train(copied)
    assert train(copied).step == 12


def test_the_tokenizer_must_fit_the_model(make_run):
    with pytest.raises(UserError, match=r"room for 270: set model\.vocab="):
        train(make_run({"model.vocab": 270}))


def test_the_context_must_fit_the_model(make_run):
    with pytest.raises(UserError, match=r"data\.context=48 is longer than model\.context=24"):
        train(make_run({"data.context": 48}))


def test_a_run_without_model_or_start(make_run):
    with pytest.raises(UserError, match="needs a model"):
        train(Run(data=make_run().data, out=make_run().out))


def test_rows_must_be_at_least_one_each():
    from onefold.training.processes.parallel import check_rows

    check_rows(8, 4)
    with pytest.raises(UserError, match=r"trainer\.batch=6 rows cannot be shared evenly by 4"):
        check_rows(6, 4)


def test_starting_from_another_run(done, make_run):
    """With a learning rate of nearly nothing the weights stay those of the start; tokenizer and model come along."""
    values = {"start": str(done.out), "model": None, "optimizer.lr": 1e-12, "trainer.steps": 2}
    result = train(make_run(values))
    begun = load_file(open_path(done))
    for name, tensor in load_file(result.checkpoint / "model.safetensors").items():
        torch.testing.assert_close(tensor, begun[name], atol=1e-6, rtol=0)
    assert open_model(result.out).tokenizer.digest == open_model(done.out).tokenizer.digest
    assert losses(result)[0] == pytest.approx(losses(done)[-1], abs=0.5)


def open_path(result):
    step = json.loads((result.out / "checkpoints" / "best.json").read_text())["step"]
    return result.out / "checkpoints" / str(step) / "model.safetensors"


def test_resuming_does_not_need_the_start_any_more(done, make_run, tmp_path):
    shutil.copytree(done.out, tmp_path / "first")
    values = {"start": str(tmp_path / "first"), "model": None}
    train(make_run({**values, "trainer.steps": 2}))
    shutil.rmtree(tmp_path / "first")
    assert train(make_run({**values, "trainer.steps": 4})).step == 4


def test_a_start_of_another_shape_is_one_line(done, make_run):
    with pytest.raises(UserError, match="the model makes it"):
        train(make_run({"start": str(done.out), "model.width": 32}))


def test_new_tokens_begin_as_the_mean_of_the_old(done, make_run):
    run = make_run({"start": str(done.out), "model.vocab": 300, "optimizer.lr": 1e-12, "trainer.steps": 1})
    old = load_file(open_path(done))["embed.token.weight"]
    new = load_file(train(run).checkpoint / "model.safetensors")["embed.token.weight"]
    assert new.shape[0] == 300
    torch.testing.assert_close(new[:288], old, atol=1e-6, rtol=0)
    torch.testing.assert_close(new[288:], old.mean(0).expand(12, -1), atol=1e-6, rtol=0)


def test_an_objective_gets_its_frozen_models(done, make_run, monkeypatch):
    from onefold.objectives.language import NextToken

    given, build = {}, NextToken.build

    def spy(self, frozen=None):
        given.update(frozen)
        return build(self, frozen)

    monkeypatch.setattr(NextToken, "build", spy)
    train(make_run({"frozen": {"teacher": str(done.out)}, "trainer.steps": 1}))
    assert not any(p.requires_grad for p in given["teacher"].parameters())
    assert not given["teacher"].training


def test_history_keeps_the_first_steps(make_run):
    result = train(make_run({"trainer.history": 8, "trainer.keep": 1, "trainer.checkpoint_every": 5}))
    steps = sorted(int(f.name) for f in (result.out / "checkpoints").iterdir() if f.name.isdigit())
    assert steps == [0, 1, 2, 4, 8, 12]


def test_a_run_without_held_out_text_is_not_evaluated(make_run):
    result = train(make_run({"data.held_out": 0.0, "trainer.evaluate_every": 2, "trainer.steps": 4}))
    assert result.best is None
    assert all("held_out" not in record for record in result.log)


def test_a_run_that_saved_nothing_may_be_mended(make_run):
    with pytest.raises(UserError, match="room for 270"):
        train(make_run({"model.vocab": 270}))
    assert train(make_run({"trainer.steps": 1})).step == 1


def test_checkpoints_without_a_config_are_not_touched(copied):
    (copied.out / "config.json").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json"):
        train(copied)
