"""Black-box tuning is the published setting, prints, round-trips, and runs where recipes are run."""

import json

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.artifact import save_artifact
from onefold.study.tuning.tune import TuneConfig
from tests.infer.small_models import config, decoder


def test_it_is_the_published_setting():
    search = recipes.resolve("bbt", {"model": "runs/mine", "prompt.tokens": 20})
    assert (search.model, search.prompt.tokens, search.prompt.dims, search.calls) == ("runs/mine", 20, 500, 8000)
    assert (search.prompt.alpha, search.prompt.sigma, search.population, search.shots) == (1.0, 1.0, 20, 16)
    assert TuneConfig.from_json(search.to_json()) == search
    with pytest.raises(UserError, match="did you mean tokens"):
        recipes.resolve("bbt", {"prompt.token": 3})


def test_it_runs_from_its_name_and_from_its_file(tmp_path):
    pytest.importorskip("cma")
    rows = [{"text": f"{word} thing {i}", "label": word} for i in range(20) for word in ("red", "blue")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer.train([row["text"] + " red blue" for row in rows], vocab=300)
    made = config("llama2", vocab=tokenizer.size)
    save_artifact(tmp_path / "model", decoder(made), made, tokenizer)
    given = {"model": str(tmp_path / "model"), "data": str(tmp_path / "rows.jsonl"), "out": str(tmp_path / "out")}
    changes = {"shots": 3, "prompt.tokens": 3, "calls": 40, "device": "cpu"}
    result = onefold.train("bbt", tiny=True, **given, **changes)
    assert (result.status, result.calls) == ("finished", 40)
    again = onefold.train(tmp_path / "out", calls=60)
    assert again.calls == 60
