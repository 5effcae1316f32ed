"""Words searched for a service: what it said is kept, whatever breaks."""

from collections import Counter

import pytest

from onefold.core.errors import UserError
from onefold.study.tuning.tune import TuneConfig, tune
from tests.infer.service import serving


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr("onefold.infer.teaching.endpoint.FIRST_WAIT", 0.001)
    with serving() as service:
        yield service


def rows(folder):
    texts = [
        (f"a {word} thing, number {i}", label) for i in range(12) for word, label in (("red", "hot"), ("blue", "icy"))
    ]
    (folder / "rows.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in texts))
    (folder / "candidates.txt").write_text("tell\nme\nwhat\nit\n")
    return str(folder / "rows.csv")


def settings(service, folder, out, **changes) -> TuneConfig:
    return TuneConfig.from_dict(
        {
            "endpoint": {"url": service.url, "parallel": 2, "attempts": 2},
            "data": rows(folder),
            "template": "{text} is",
            "words": {"hot": "warm", "icy": "cold"},
            "shots": 3,
            "population": 6,
            "calls": 60,
            "evaluate_every": 12,
            "prompt": {"kind": "words", "length": 3, "candidates": str(folder / "candidates.txt")},
            "out": str(folder / out),
            **changes,
        }
    )


def test_words_are_found_for_a_service_that_says_probabilities_alone(service, tmp_path):
    result = tune(settings(service, tmp_path, "out", calls=120), key="secret")
    assert result.prompt == "tell tell tell"
    assert result.calls == 120
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "out").rglob("*.*") if file.is_file())


def test_a_search_whose_service_breaks_down_keeps_every_call_and_asks_none_again(service, tmp_path):
    whole = tune(settings(service, tmp_path, "whole"))
    needed, service.seen, service.limit = len(service.seen), [], 100  # in the middle of a generation
    made = settings(service, tmp_path, "broken")
    with pytest.raises(UserError, match=r"gave no answer(.|\n)*15 calls are kept"):
        tune(made)
    service.limit = None
    again = tune(made)
    assert (again.prompt, again.loss) == (whole.prompt, whole.loss)
    ours, theirs = (tmp_path / name / "calls.jsonl" for name in ("broken", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(service.seen) <= needed + 6  # what was under way when it broke
    asked = len(service.seen)
    assert tune(made) == again  # finished: nobody is asked
    assert len(service.seen) == asked
    assert max(Counter(body["prompt"] for body in service.seen).values()) <= 3


def test_a_service_may_be_reached_otherwise_when_a_search_goes_on(service, tmp_path):
    made = settings(service, tmp_path, "out", calls=12)
    tune(made)
    reached = {"timeout": 5.0, "parallel": 1, "attempts": 3, "per_minute": 1e6}
    assert tune(made.but({"calls": 18, "endpoint": reached})).calls == 18
    with pytest.raises(UserError, match=r"differs in endpoint\.top"):
        tune(made.but({"endpoint": {"top": 5}}))
