"""The main job in small: own text and own conversations in; a report and a model that answers out."""

import json
import sysconfig
from pathlib import Path

import pytest

import onefold
from onefold.core.errors import UserError
from onefold.recipes import _own_answers, quickstart
from onefold.recipes.quickstart import run
from onefold.study.results import read_results


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    sources = Path(sysconfig.get_path("stdlib")) / "json"
    (folder / "text").mkdir()
    for n, line in enumerate("".join(f.read_text() for f in sorted(sources.glob("*.py"))).split("\n\n\n")):
        (folder / "text" / f"{n}.py").write_text(line)
    with (folder / "chat.jsonl").open("w") as file:
        for n in range(30):
            turns = [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"A number, {n}."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    run(data=str(folder / "text"), chat=str(folder / "chat.jsonl"), minutes=0.05, out=str(folder / "out"))
    return folder


def test_it_leaves_a_report_with_all_four_baselines(done):
    found = read_results(done / "out")
    assert [b["name"] for b in found["baselines"]] == ["bigram", "5-gram", "xz", "primed xz"]
    assert found["final"]["bits_per_byte"] > 0
    page = (done / "out" / "report.html").read_text()
    assert "primed xz" in page
    assert found["data"]["hash"] in page


def test_the_model_it_leaves_is_the_one_that_answers(done):
    model = onefold.load(done / "out")
    assert isinstance(model.chat([{"role": "user", "content": "What is 3?"}], max_new_tokens=5), str)
    assert model.tokenizer.chat_template


def test_given_again_it_trains_no_more(done, capsys):
    before = (done / "out" / "size.json").read_text()
    run(data=str(done / "text"), chat=str(done / "chat.jsonl"), minutes=0.05, out=str(done / "out"))
    assert "is finished" in capsys.readouterr().err
    assert (done / "out" / "size.json").read_text() == before


def test_another_job_in_the_same_folder_is_refused(done):
    with pytest.raises(UserError, match="minutes"):
        run(data=str(done / "text"), chat=str(done / "chat.jsonl"), minutes=1.0, out=str(done / "out"))


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"data": "notes/"}, []),
        ({"data": "notes/", "chat": "talks.jsonl"}, [quickstart.CHAT_SHARE]),
        ({"chat": "talks.jsonl"}, [quickstart.CHAT_SHARE]),
        ({}, [quickstart.CHAT_SHARE, quickstart.WRITING_SHARE, quickstart.PREFER_SHARE]),
    ],
)
def test_the_stages_share_the_minutes(settings, stages):
    job = quickstart.Quickstart(minutes=10, **settings)
    assert job.seconds() + sum(map(job.seconds, stages)) == pytest.approx(600)


@pytest.mark.parametrize(
    ("settings", "message"), [({"minutes": -1}, "minutes"), ({"minuts": 5}, "did you mean minutes")]
)
def test_mistakes_are_told(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(out=str(tmp_path / "out"), **settings)


@pytest.mark.slow
def test_python_goes_on_to_preferences(tmp_path, monkeypatch, capsys):
    """Of a folder that stands for the standard library: answers, pairs, DPO, and what changed, on the page."""
    folder = str(Path(sysconfig.get_path("stdlib")) / "email")
    monkeypatch.setattr(quickstart, "STDLIB", folder)
    monkeypatch.setattr(_own_answers, "FEWEST", 1)
    settings = {"data": folder, "minutes": 0.05, "out": str(tmp_path / "out")}
    run(**settings)
    found = read_results(tmp_path / "out")
    assert [stage["name"] for stage in found["stages"]] == ["pretrain", "chat", "prefer"]
    gain = found["preferences"]
    assert gain["pairs"] > 0
    assert [sum(faults.values()) for faults in gain["faults"]] == [gain["tries"] * gain["requests"]] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What it learned from preferences" in page
    assert "Learning from preferences" in page
    policy, start = (onefold.load(tmp_path / "out" / stage) for stage in ("", "chat"))
    ids = [[3, 5, 7]]
    assert not policy.logits(ids).equal(start.logits(ids))

    capsys.readouterr()
    run(**settings)  # finds everything
    assert read_results(tmp_path / "out")["preferences"] == gain
    assert "answering" not in capsys.readouterr().err
