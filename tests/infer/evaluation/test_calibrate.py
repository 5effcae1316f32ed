"""Learn then Test: the p-values, the order of testing, and that the bound is kept."""

import json
from collections import Counter
from random import Random

import pytest
import torch
from scipy.stats import binom
from typer.testing import CliRunner

from onefold.adapt.lora import LoRAConfig
from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.sources import read
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.evaluation import calibrate
from onefold.infer.evaluation.calibrate import Calibration, fit_classifier, likeness, lost, p_value, search, windows
from onefold.infer.model import Model, load
from onefold.interop.artifact import save_artifact
from onefold.interop.loaded import Loaded
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
    lines = [" ".join(Random(i).choices(WORDS, k=40)) for i in range(64)]
    (place / "texts.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    tokenizer = Tokenizer.train(lines, 290)
    settings = config("gpt2", vocab=tokenizer.size, depth=4)
    save_artifact(place / "model", decoder(settings, scale=0.35), settings, tokenizer)
    return place


FEW = {"texts": 30, "prompt": 6, "tokens": 8, "step": 0.25}


def test_thresholds_are_tested_in_order_until_one_fails(folder, monkeypatch):
    model, settings = load(folder / "model"), Calibration(**FEW, delta=0.2)
    drawn = windows(model, folder / "texts.jsonl", 30, settings)
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


def test_windows_are_of_different_documents_drawn_alike_in_one_pass(folder, monkeypatch):
    model, settings, data = load(folder / "model"), Calibration(**FEW), folder / "texts.jsonl"
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    passes = []
    monkeypatch.setattr(calibrate, "read", lambda path: passes.append(path) or read(path))

    def documents(count: int, seed: int = 0) -> list[int]:
        drawn = windows(model, data, count, settings.but({"seed": seed}))
        assert {tuple(map(len, window)) for window in drawn} == {(6, 8)}
        said = [model.tokenizer.decode([i for i in a + b if i != model.tokenizer.start]) for a, b in drawn]
        return [next(i for i, text in enumerate(texts) if one in text) for one in said]

    assert len(documents(50)) == len(set(documents(50))) == 50
    assert documents(50) == documents(50)
    assert sorted(documents(200)) == list(range(64))  # and not 200 windows of them
    assert len(passes) == 5
    (folder / "twice.jsonl").write_text(data.read_text() + "\n" + data.read_text())
    assert windows(model, folder / "twice.jsonl", 50, settings) == windows(model, data, 50, settings)
    assert len(windows(model, folder / "twice.jsonl", 200, settings)) == 64  # a copy is none more
    often = Counter(i for seed in range(60) for i in documents(16, seed))
    assert len(often) == 64
    assert max(often.values()) < 30  # 15 are expected

    with pytest.raises(UserError, match="the model's context is 64"):
        windows(model, "", 1, Calibration(prompt=60))
    (folder / "short.txt").write_text("one two")
    with pytest.raises(UserError, match="no text of 62 tokens"):
        windows(model, folder / "short.txt", 1, Calibration(prompt=30))


def test_fewer_documents_are_fewer_texts_and_a_classifier_takes_half(folder, monkeypatch, capsys):
    model, data, given = load(folder / "model"), folder / "texts.jsonl", {**FEW, "texts": 200, "delta": 0.9}
    searched = []
    monkeypatch.setattr(calibrate, "search", lambda _, *rest: searched.append(rest) or search(model, *rest))
    calibrate.calibrate(model, folder / "model", data, **given)
    assert len(searched[-1][0]) == 64
    assert json.loads((folder / "model" / "early_exit.json").read_text())["settings"]["texts"] == 64
    assert "each counts once: 64 are tested\n" in capsys.readouterr().err
    calibrate.calibrate(model, folder / "model", data, **given, measure="classifier")
    tested, _, others, _ = searched[-1]
    assert (len(tested), len(others)) == (32, 32)
    assert not [window for window in tested if window in others]
    assert "32 are tested, 32 fit the classifier" in capsys.readouterr().err
    (folder / "one.txt").write_text("one two three " * 400)
    with pytest.raises(UserError, match="1 texts can show nothing"):
        calibrate.calibrate(model, folder / "model", folder / "one.txt", **FEW)


def test_what_was_calibrated_with_an_adapter_is_for_it_merged_or_not(folder, tmp_path):
    def adapted() -> Model:
        plain = load(folder / "model")
        LoRAConfig(rank=2, targets=("mixer.*",)).apply(plain.network)
        for name, parameter in plain.network.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
            if name.endswith(".a"):
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        return Model(Loaded(plain.config, plain.network, plain.tokenizer, {}))

    model = adapted()
    calibrate.calibrate(model, tmp_path, folder / "texts.jsonl", **{**FEW, "tokens": 16, "delta": 0.9})
    assert model.network.switch.merged  # as writing left it
    told = {"early_exit": json.loads((tmp_path / "early_exit.json").read_text())}
    for merged in (False, True):
        again = adapted()
        again = Model(Loaded(again.config, again.network, again.tokenizer, told))
        if merged:
            again.generate("one two", max_new_tokens=16)
        assert again.network.switch.merged == merged
        again.leave_early()


def test_a_classifier_tells_where_layers_agree_with_the_last(folder):
    model, settings = load(folder / "model"), Calibration(**FEW)
    drawn = windows(model, folder / "texts.jsonl", 60, settings)
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
    assert "one of that name is data=./5" in str(call("calibrate", model, "data=5").exception)
    for taken in ("folder", "model"):
        with pytest.raises(UserError, match=taken):
            raise call("calibrate", model, data, f"{taken}=x").exception
    with pytest.raises(UserError, match="is no folder"):
        calibrate.calibrate(load(model), "org/name", data)
