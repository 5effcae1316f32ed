"""Reading a run's folder, also one that a crash left."""

import json

import numpy as np
import pytest

from onefold.core.errors import UserError
from onefold.study.runs import flatten, read_log, read_run


def test_series_hold_what_was_logged(make_run):
    log = read_run(make_run()).log
    steps, loss = log.series("loss")
    assert steps.tolist() == list(range(1, 401))
    assert np.all(np.diff(loss[::100]) < 0)
    seconds, bits = log.series("held_out", "bits_per_byte", x="seconds")
    assert len(bits) == 20
    assert seconds[-1] == 300
    assert log.last("tokens") == 400 * 8192
    assert log.bits_per_nat == pytest.approx(0.44)
    assert list(log.events()) == [(123, "update skipped: a spike: loss 9.1, lately 4.0")]
    assert len(log.series("grad_norm")[0]) == 399  # null is no number


def test_a_crash_and_a_resume_leave_a_readable_log(tmp_path):
    lines = [{"step": s, "loss": 5 - s} for s in (1, 2, 3)] + [{"step": s, "loss": 50 - s} for s in (2, 3, 4)]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 5, "lo'
    (tmp_path / "log.jsonl").write_text(text)
    steps, loss = read_log(tmp_path).series("loss")
    assert steps.tolist() == [1, 2, 3, 4]
    assert loss.tolist() == [4, 48, 47, 46]


def test_stages_come_in_the_order_that_was_written_down(chain):
    run = read_run(chain)
    assert run.title == "quickstart"
    assert [stage.title for stage in run.stages] == ["Pre-training", "Fine-tuning"]
    assert run.main.path.name == "pretrain"


def test_stages_are_found_without_results(chain):
    (chain / "results.json").unlink()
    assert {stage.path.name for stage in read_run(chain).stages} == {"pretrain", "chat"}


def test_stages_may_lie_anywhere(make_run):
    run = read_run({"One": make_run("a"), "Two": make_run("b/c")})
    assert [stage.title for stage in run.parts] == ["One", "Two"]


@pytest.mark.parametrize("what", ["missing", "empty", "none"])
def test_what_is_no_run_is_refused(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        read_run({} if what == "none" else tmp_path / what)


def test_damaged_config_is_named(make_run):
    folder = make_run()
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_run(folder)


def test_flatten_gives_dotted_paths():
    nested = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": None}, {"f": 2}]}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e.0.f": None, "e.1.f": 2}
