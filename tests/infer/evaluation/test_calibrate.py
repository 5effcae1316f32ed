"""Learn then Test: the p-values, the order of testing, and that the bound is kept."""

import json

import pytest
import torch
from scipy.stats import binom
from typer.testing import CliRunner

from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.evaluation import calibrate
from onefold.infer.evaluation.calibrate import Calibration, fit_classifier, likeness, lost, p_value, search, windows
from onefold.infer.model import load
from onefold.interop.artifact import save_artifact
from tests.infer.small_models import config, decoder

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def test_p_values_are_never_too_small():
    """Losses of 0 and 1 with a mean of exactly δ: p ≤ ε in no more than a share ε of draws, by the exact binomial."""
    for count, delta in ((40, 0.1), (100, 0.05), (200, 0.3)):
        chance = binom.pmf(range(count + 1), count, delta)
        for epsilon in (0.01, 0.05, 0.2):
            wrong = sum(p for k, p in enumerate(chance) if p_value(k / count, count, delta) <= epsilon)
            assert wrong <= epsilon
    assert p_value(0.0, 29, 0.1) <= 0.05 < p_value(0.0, 28, 0.1)  # (1 - δ)^n
    assert p_value(0.1, 1000, 0.1) == 1.0
    assert p_value(0.02, 300, 0.1) < torch.tensor(-2 * 300 * 0.08**2).exp()  # tighter than the plain bound


def test_likeness_is_rouge_l_of_tokens():
    assert likeness([1, 2, 3, 4], [1, 9, 3, 4]) == 0.75
    assert likeness([1, 2, 3], [3, 2, 1, 5]) == pytest.approx(2 / 7)
    assert (likeness([], []), likeness([1], [])) == (1.0, 0.0)
    texts = [([], [7, 8, 9, 9])]
    assert lost([[7, 8, 1]], [[7, 8, 9]], texts, "risk") == [pytest.approx(1 / 3)]
    assert lost([[7, 8, 9]], [[1, 8, 9]], texts, "risk") == [0.0]  # better than the whole model costs nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("calibrate")
    lines = [" ".join(WORDS[(i * k) % 10] for k in range(1, 40)) for i in range(40)]
    (place / "texts.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    tokenizer = Tokenizer.train(lines, 290)
    settings = config("gpt2", vocab=tokenizer.size, depth=4)
    save_artifact(place / "model", decoder(settings, scale=0.35), settings, tokenizer)
    return place


FEW = {"texts": 30, "prompt": 6, "tokens": 8, "step": 0.25}


def test_thresholds_are_tested_in_order_until_one_fails(folder, monkeypatch):
    model, settings = load(folder / "model"), Calibration(**FEW, delta=0.2)
    drawn = list(windows(model, str(folder / "texts.jsonl"), 30, settings))
    told = {1.0: 0.0, 0.75: 0.01, 0.5: 0.02, 0.25: 0.3, 0.0: 0.0}  # what each loses
    seen = []
    monkeypatch.setattr(
        calibrate, "lost", lambda *_: seen.append(model.early_exit.rule.threshold) or [told[seen[-1]]] * 30
    )
    found = search(model, drawn, settings)
    assert seen == [1.0, 0.75, 0.5, 0.25]
    assert found.rule.threshold == found.chosen.threshold == 0.5
    assert model.early_exit is None
    monkeypatch.setattr(calibrate, "lost", lambda *_: [0.5] * 30)
    assert search(model, drawn, settings).rule is None
    with pytest.raises(UserError, match="at least 59 are needed"):
        search(model, drawn, settings.but({"delta": 0.05}))


def test_windows_are_of_all_documents_before_there_is_a_second_of_any(folder):
    model, settings = load(folder / "model"), Calibration(**FEW)
    drawn = list(windows(model, str(folder / "texts.jsonl"), 50, settings))
    assert [tuple(map(len, window)) for window in drawn] == [(6, 8)] * 50
    assert drawn == list(windows(model, str(folder / "texts.jsonl"), 50, settings))
    with pytest.raises(UserError, match="the model's context is 64"):
        next(windows(model, "", 1, Calibration(prompt=60)))
    (folder / "short.txt").write_text("one two")
    with pytest.raises(UserError, match="no text of 62 tokens"):
        next(windows(model, str(folder / "short.txt"), 1, Calibration(prompt=30)))


def test_a_classifier_tells_where_layers_agree_with_the_last(folder):
    model, settings = load(folder / "model"), Calibration(**FEW)
    drawn = list(windows(model, str(folder / "texts.jsonl"), 60, settings))
    numbers = torch.tensor(fit_classifier(model, drawn[:30]))
    ids = torch.tensor([a + b for a, b in drawn[30:]])
    with torch.no_grad():
        layers = model.network.layers(ids)
        says = model.network.head(layers).argmax(-1)
    agrees, sure = (says[:-1] == says[-1]).flatten(), (layers[:-1] @ numbers[:-1] + numbers[-1]).sigmoid().flatten()
    assert sure[agrees].mean() > sure[~agrees].mean() + 0.1


def test_what_was_found_lies_beside_the_model_and_is_used(folder, monkeypatch):
    def call(*words: str):
        return CliRunner().invoke(app, [*map(str, words)])

    model, data = folder / "model", f"data={folder / 'texts.jsonl'}"
    settings = [f"{name}={value}" for name, value in FEW.items()]
    done = call("calibrate", model, data, "delta=0.9", *settings)
    assert done.exit_code == 0, done.output
    assert "wrote" in done.output
    told = json.loads((model / "early_exit.json").read_text())
    assert [one["threshold"] for one in told["tried"]] == [1.0, 0.75, 0.5, 0.25, 0.0]
    written = call("generate", model, "one two", "max_new_tokens=9", "--exit", "calibrated")
    assert "of 4 layers a token" in written.output
    monkeypatch.setattr(calibrate, "lost", lambda *_: [0.5] * 30)
    assert "no threshold is certain" in str(call("calibrate", model, data, *settings).exception)
    assert "needs data=" in str(call("calibrate", model).exception)
    with pytest.raises(UserError, match="is no folder"):
        calibrate.calibrate(load(model), "org/name", data)
