"""Leaving early against a loop that keeps what every layer read of every token, and computes all of it again."""

import json

import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation import early_exit, engine
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.early_exit import EarlyExit, ExitRule, fingerprint, gap
from onefold.infer.generation.sampling import Sampling
from onefold.infer.model import Model, load
from onefold.interop.artifact import save_artifact
from onefold.interop.loaded import Loaded
from onefold.models.recurrent.language_model import RecurrentConfig
from onefold.nn.attention import Layout
from tests.infer.small_models import config, decoder

PROMPT = [5, 9, 2, 44, 5, 9, 2, 17, 3, 5, 9]
DEEP = {"depth": 5}
KINDS = {
    "gpt2": config("gpt2", **DEEP),
    "pythia": config("pythia", **DEEP),
    "mistral": config("mistral", **DEEP),  # windows that are shorter than the texts
    "alternating": config("llama2", **DEEP, pattern=[{}, {"mixer.window": 4}]),
    "s4d": config("llama2", **DEEP).but({"block.mixer": {"kind": "s4d", "states": 8}}),
}
GREEDY = Sampling(max_new_tokens=30)


def written(model, prompts, sampling=GREEDY) -> list[list[int]]:
    rows = [Continuation(prompt, sampling.max_new_tokens, random=np.random.default_rng(0)) for prompt in prompts]
    for _ in engine.generate(model, rows, sampling):
        pass
    return [row.ids for row in rows]


@torch.no_grad()
def looped(model, rule: ExitRule, prompt, new: int) -> tuple[list[int], list[int]]:
    """The text, and after how many layers each token left; read[i] is what layer i read, of all columns."""
    whole = Layout(torch.arange(len(prompt))[None])
    x, read = model.embed(torch.tensor([prompt]), whole), []
    for block in model.blocks:
        read.append(x)
        x = block(x, whole)
    ids, left = [int(model.head(model.norm(x))[0, -1].argmax())], []
    for written in range(new - 1):
        column = len(prompt) + written
        layout = Layout(torch.arange(column + 1)[None])
        x = model.embed(torch.tensor([ids[-1:]]), Layout(torch.tensor([[column]])))
        gone = None
        for i, block in enumerate(model.blocks):
            read[i] = torch.cat((read[i], x), 1)
            if gone is not None:
                continue
            before, x = x, block(read[i], layout)[:, -1:]
            if i + 1 == len(model.blocks) or sure(model, rule, before, x) >= rule.at(written):
                gone = i + 1
        left.append(gone)
        ids.append(int(model.head(model.norm(x))[0, -1].argmax()))
    return ids, left


def sure(model, rule: ExitRule, before, x) -> float:
    if rule.measure == "state":
        return torch.cosine_similarity(before[0, 0], x[0, 0], dim=0).item()
    features = model.norm(x)[0, 0]
    if rule.measure == "classifier":
        return (features @ torch.tensor(rule.classifier[:-1]) + rule.classifier[-1]).sigmoid().item()
    first, second = model.head(features).softmax(0).topk(2).values
    return (first - second).item()


@torch.no_grad()
def usual(model, share: float = 0.75) -> float:
    """A threshold that this share of layers does not pass."""
    logits = model.head(model.layers(torch.randint(0, 61, (4, 30), generator=torch.Generator().manual_seed(1))))
    return gap(logits).flatten().quantile(share).item()


@pytest.mark.parametrize(
    ("kind", "measure"), [*((kind, "softmax") for kind in KINDS), ("gpt2", "state"), ("gpt2", "classifier")]
)
def test_texts_are_those_of_the_loop(kind, measure, monkeypatch):
    monkeypatch.setattr(early_exit, "OWED", 7)  # so that all layers make up for what they owe several times
    model = decoder(KINDS[kind], scale=0.2 if measure == "state" else 0.35)
    torch.manual_seed(0)
    numbers = tuple(torch.randn(25).tolist()) if measure == "classifier" else ()
    threshold = {"softmax": usual(model), "state": 0.5, "classifier": 0.95}[measure]
    rule = ExitRule(measure=measure, threshold=threshold, classifier=numbers, tokens=30)
    leaving = EarlyExit(model, rule)
    wanted, left = looped(model, rule, PROMPT, 30)
    assert written(leaving, [PROMPT]) == [wanted]
    assert len(set(left)) > (2 if measure == "softmax" else 1), left  # or it would not be much of a test
    assert (leaving.tokens, leaving.layers) == (29, sum(left))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_a_batch_are_those_of_each_alone(kind):
    model, prompts = decoder(KINDS[kind], scale=0.35), [PROMPT, PROMPT[:3], PROMPT[4:], [7, 60]]
    budgets = [30, 12, 21, 30]
    leaving, alone = (EarlyExit(model, ExitRule(threshold=usual(model))) for _ in range(2))
    rows = [Continuation(prompt, budget) for prompt, budget in zip(prompts, budgets, strict=True)]
    for _ in engine.generate(leaving, rows, GREEDY):  # rows that end leave the batch
        pass
    for row, prompt, budget in zip(rows, prompts, budgets, strict=True):
        assert written(alone, [prompt], Sampling(max_new_tokens=budget)) == [row.ids]
    assert (leaving.tokens, leaving.layers) == (alone.tokens, alone.layers)
    assert leaving.layers < 5 * leaving.tokens


def test_whoever_is_never_sure_uses_all_layers():
    model = decoder(KINDS["gpt2"])
    leaving = EarlyExit(model, ExitRule(threshold=1.0, temperature=0.0))
    assert written(leaving, [PROMPT, PROMPT[:4]]) == written(model, [PROMPT, PROMPT[:4]])
    assert leaving.mean_layers == leaving.depth == 5


@pytest.mark.parametrize("columns", [1, 4, 5, 9])
def test_prompts_are_read_by_all_layers_however_long_they_are(columns, monkeypatch):
    monkeypatch.setattr(engine.read, "__defaults__", (4,))  # columns at once: of 5 and 9 one is left for the last
    model, prompt = decoder(KINDS["gpt2"], scale=0.35), PROMPT[:columns]
    rule = ExitRule(threshold=0.0, temperature=1e9)  # who may leave does, after one layer
    leaving = EarlyExit(model, rule)
    wanted, left = looped(model, rule, prompt, 6)
    assert written(leaving, [prompt], Sampling(max_new_tokens=6)) == [wanted]
    assert (leaving.tokens, leaving.layers) == (5, sum(left))
    with torch.no_grad():
        assert wanted[0] == int(model(torch.tensor([prompt]))[0, -1].argmax())


def test_a_threshold_falls_over_a_text():
    rule = ExitRule(threshold=0.5, temperature=4.0, tokens=10)
    assert rule.at(0) == pytest.approx(0.55)
    assert rule.at(10) == pytest.approx(0.45 + 0.1 * np.exp(-4.0))


@pytest.fixture
def opened(tmp_path) -> Model:
    tokenizer = Tokenizer.train([__doc__] * 3, 280)
    settings = config("gpt2", vocab=tokenizer.size, **DEEP)
    save_artifact(tmp_path / "model", decoder(settings, scale=0.35), settings, tokenizer)
    return load(tmp_path / "model")


def test_a_model_writes_by_a_threshold_and_by_what_was_calibrated_for_it(opened, tmp_path):
    plain = opened.generate("Leaving", max_new_tokens=20)
    opened.leave_early("0.03")
    early = opened.generate("Leaving", max_new_tokens=20)
    assert 1 <= opened.early_exit.mean_layers < 5
    with pytest.raises(UserError, match="choose one of them"):
        opened.speculate("ngram")
    opened.leave_early(None)
    assert opened.generate("Leaving", max_new_tokens=20) == plain
    for wrong in ("soon", 1.5):
        with pytest.raises(UserError, match="a threshold from 0 to 1"):
            opened.leave_early(wrong)
    with pytest.raises(UserError, match="run onefold calibrate, or give a threshold"):
        opened.leave_early()

    told = {"rule": {"threshold": 0.03}, "weights": fingerprint(opened.network)}
    beside = Model(Loaded(opened.config, opened.network, opened.tokenizer, {"early_exit": told}))
    beside.save(tmp_path / "saved", dtype="bfloat16")  # the card keeps it
    beside.leave_early()
    assert beside.generate("Leaving", max_new_tokens=20) == early
    load(tmp_path / "saved").leave_early("calibrated")
    with torch.no_grad():
        beside.network.blocks[0].mixer.out.weight += 1
    with pytest.raises(UserError, match="for other weights"):
        beside.leave_early()


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '{"a":' * 100_000, "7", " " * 64])
def test_a_damaged_calibration_is_told_and_the_model_opens_all_the_same(opened, tmp_path, content, monkeypatch, capsys):
    file = tmp_path / "model" / "early_exit.json"
    file.write_text(content)
    model = load(tmp_path / "model")
    assert f"{file} is damaged" in capsys.readouterr().err
    assert model.generate("Leaving", max_new_tokens=3) == opened.generate("Leaving", max_new_tokens=3)
    with pytest.raises(UserError, match="run onefold calibrate"):
        model.leave_early()
    file.write_text(json.dumps({"rule": {"threshold": 0.5}}))
    assert "early_exit" in load(tmp_path / "model").card
    monkeypatch.setattr("onefold.interop.open.EARLY_EXIT_BYTES", 20)
    assert "early_exit" not in load(tmp_path / "model").card


def test_models_that_cannot_be_left_early_say_so(opened):
    recurrent = RecurrentConfig(vocab=9, width=8, depth=1, context=8).build()
    for model in (recurrent, decoder(config("gpt2", depth=1))):
        with pytest.raises(UserError, match="for decoders of several layers"):
            EarlyExit(model, ExitRule(threshold=0.5))
    with pytest.raises(UserError, match="another width"):
        EarlyExit(opened.network, ExitRule(threshold=0.5, measure="classifier", classifier=(1.0, 2.0)))
