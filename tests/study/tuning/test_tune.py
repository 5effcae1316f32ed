"""A search over prompts: better than none, the same when it is stopped, and nothing lost when something breaks."""

import json

import pytest
import torch
from safetensors.torch import load_file

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.label_words import WordScorer, label_loss
from onefold.infer.model import load
from onefold.interop.artifact import save_artifact
from onefold.study.tuning.tune import TuneConfig, few_shots, tune
from tests.infer.small_models import config, decoder

pytest.importorskip("cma")
ROWS = [
    {"text": f"the {word} number {i} is {word} again", "label": label}
    for i in range(30)
    for word, label in (("red", "warm"), ("blue", "cold"))
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows, and a model that knows nothing of them."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = Tokenizer.train([row["text"] + " warm cold " for row in ROWS], vocab=300)
    made = config("llama2", vocab=tokenizer.size)
    save_artifact(folder / "model", decoder(made), made, tokenizer)
    return folder


def settings(place, out, **changes) -> TuneConfig:
    base = {"model": str(place / "model"), "data": str(place / "rows.jsonl"), "shots": 4, "population": 8}
    base |= {"calls": 96, "evaluate_every": 32, "prompt": {"kind": "soft", "tokens": 4, "dims": 12}, "out": str(out)}
    return TuneConfig.from_dict(base | {"device": "cpu"} | changes)


def lines(out):
    return [json.loads(line) for line in (out / "calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["cross_entropy", "hinge"])
def test_vectors_are_found_that_lower_the_loss_and_lie_there(place, tmp_path, loss):
    made = settings(place, tmp_path, loss=loss)
    result = tune(made)
    calls = [line for line in lines(tmp_path) if "asked" in line and "chosen_after" not in line]
    assert (result.status, result.calls, len(calls)) == ("finished", 96, 96)
    asked, learned, chosen, _ = few_shots(made)
    model = WordScorer(load(place / "model"), asked)
    bare = label_loss(model.scores(model.rows(learned.texts)), learned.labels, loss).item()
    first = min(call["loss"] for call in calls[:8])
    assert min(call["loss"] for call in calls) < min(first, bare)
    # What was written is what was chosen.
    vectors = load_file(tmp_path / "prompt" / "prompt.safetensors")["prompt"]
    scores = model.prompted(vectors[None], model.rows(chosen.texts, room=4))[0]
    assert label_loss(scores, chosen.labels, loss).item() == pytest.approx(result.loss, abs=1e-5)
    assert result.tokens == sum(line.get("tokens", 0) for line in lines(tmp_path))
    assert json.loads((tmp_path / "result.json").read_text())["tuned"]["value"] == result.tuned.value


@pytest.mark.parametrize("prompt", [{"kind": "soft", "tokens": 4, "dims": 12}, {"kind": "words", "length": 3}])
def test_a_stopped_search_goes_on_to_the_bits(place, tmp_path, prompt):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tune(settings(place, whole, prompt=prompt))
    tune(settings(place, parts, prompt=prompt, calls=32))
    with (parts / "calls.jsonl").open("a") as file:  # a crash in the middle of writing a generation
        file.write(json.dumps(lines(whole)[33]) + '\n{"asked": "0')
    again = tune(settings(place, parts, prompt=prompt))
    assert (parts / "calls.jsonl").read_bytes() == (whole / "calls.jsonl").read_bytes()
    for file in (whole / "prompt").iterdir():
        assert (parts / "prompt" / file.name).read_bytes() == file.read_bytes()
    assert tune(settings(place, parts, prompt=prompt)) == again  # finished: nothing changes
    assert (parts / "calls.jsonl").read_bytes() == (whole / "calls.jsonl").read_bytes()


def test_words_are_found_and_no_prompt_is_one_of_them(place, tmp_path):
    result = tune(settings(place, tmp_path, prompt={"kind": "words", "length": 3}))
    first, *rest = (line["loss"] for line in lines(tmp_path) if "asked" in line and "chosen_after" not in line)
    assert min(rest) < first  # the first is the template alone
    told = json.loads((tmp_path / "prompt" / "prompt.json").read_text())
    assert told["template"] == (tmp_path / "prompt" / "prompt.txt").read_text() + "{text}\nIt is about"
    assert result.prompt in told["template"]


def test_the_full_dimension_begins_as_far_from_p0_as_a_subspace(place, tmp_path):
    from onefold.study.tuning.prompts import SoftPromptConfig

    asked = few_shots(settings(place, tmp_path))[0]
    model = WordScorer(load(place / "model"), asked)
    deviation = model.network.embed.token.weight.std().item()
    for dims in (None, 40):
        made = SoftPromptConfig(tokens=20, dims=dims, sigma=0.5, begin="red blue").build(model, [], 20, 0)
        drawn = made.vectors(made.search.ask())
        assert (drawn - made.first).std().item() == pytest.approx(deviation, rel=0.15)
        ids = model.tokenizer.encode("red blue")
        torch.testing.assert_close(made.first, model.network.embed.token.weight.detach()[(ids * 20)[:20]])


def test_tokens_are_a_budget_too(place, tmp_path):
    result = tune(settings(place, tmp_path, tokens=4000))
    assert 4000 <= result.tokens < 8000
    assert result.calls < 96


def test_mistakes_are_told(place, tmp_path):
    made = settings(place, tmp_path / "a", calls=8)
    tune(made)
    with pytest.raises(UserError, match=r"another search; it differs in seed \(0 there, 1 here\)"):
        tune(made.but({"seed": 1}))
    for changes, message in (
        ({"shots": 20}, "2 × 20 are needed"),
        ({"words": {"warm": "hot", "mild": "mild"}}, "no class 'mild'"),
        ({"template": "It was"}, "once"),
        ({"model": None}, "give a model, or the endpoint"),
        ({"endpoint": {"url": "http://localhost:1"}, "model": None}, "takes texts"),
        ({"prompt": {"kind": "words", "candidates": str(place / "missing")}}, "missing"),
    ):
        with pytest.raises(UserError, match=message):
            tune(settings(place, tmp_path / "b", **changes))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds something else"):
        tune(settings(place, tmp_path / "c"))


def test_other_texts_or_weights_are_no_continuation(place, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text((place / "rows.jsonl").read_text())
    made = settings(place, tmp_path / "out", data=str(rows), calls=8)
    tune(made)
    rows.write_text(rows.read_text().replace("number", "thing"))
    with pytest.raises(UserError, match="have changed since"):
        tune(made.but({"calls": 16}))


def test_a_damaged_line_in_the_middle_is_told_and_nothing_deleted(place, tmp_path):
    made = settings(place, tmp_path, calls=8)
    tune(made)
    file = tmp_path / "calls.jsonl"
    file.write_bytes(damaged := file.read_bytes().replace(b'{"asked"', b'{"ask', 1))
    with pytest.raises(UserError, match=r"calls\.jsonl:2 is not valid JSON: mend or delete this line"):
        tune(made.but({"calls": 16}))
    assert file.read_bytes() == damaged


def test_a_soft_prompt_is_a_part_of_the_model_that_classifies(place, tmp_path):
    made = settings(place, tmp_path / "out", words={"warm": "warm", "cold": "cold"})
    tune(made)
    asked, _, _, test = few_shots(made)
    base, opened = WordScorer(load(place / "model"), asked), load(tmp_path / "out")
    vectors = load_file(tmp_path / "out" / "prompt" / "prompt.safetensors")["prompt"]
    expected = base.prompted(vectors[None], base.rows(test.texts, room=4))[0].exp()
    for shares, found in zip(expected.tolist(), opened.best(test.texts, top=2)):
        assert dict(found) == pytest.approx(dict(zip(asked.classes, shares)), abs=1e-5)
        assert found[0][1] >= found[1][1]
    with pytest.raises(UserError, match="onefold tune"):
        load(place / "model").best(["red"])
    assert isinstance(opened.generate("the red", max_new_tokens=3), str)


class Pressed:
    """Ctrl-C, in the first generation."""

    requested = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_ctrl_c_ends_after_a_generation_and_the_same_command_goes_on(place, tmp_path, monkeypatch):
    made = settings(place, tmp_path, calls=16)
    with monkeypatch.context() as patched:
        patched.setattr("onefold.study.tuning.tune.Interrupt", Pressed)
        stopped = tune(made)
    assert (stopped.status, stopped.calls, stopped.tuned) == ("interrupted", 8, None)
    assert not (tmp_path / "result.json").exists()
    assert tune(made).status == "finished"
