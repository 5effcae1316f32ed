"""Every recipe resolves to a run that prints, round-trips and takes overrides, and its miniature is trainable."""

from pathlib import Path

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.models.transformer import count_parameters
from onefold.training.run import Run

LANDMARKS = ["gpt2", "pythia", "llama2", "mistral", "mixtral", "megablocks", "deepspeed_moe", "adaptive"]
WORDS = ["glove", "word2vec"]
TEACHING = ["flan_moe", "ghost_attention", "lima", "orca2", "self_instruct", "zephyr"]
PICTURES = ["classifier", "convnext", "ffcv", "mae", "nfnet", "vit"]
SEQ2SEQ = ["bart", "switch", "t5", "transformer"]
ENCODERS = ["bert", "esm1b", "roberta", "text_classifier"]
EMBEDDERS = ["cpt"]
TRANSFER = ["elmo", "gpt", "history", "ulmfit"]
PREFERENCES = ["dpo", "reward", "rlhf"]
ADAPTING = ["bbt", "lora", "qlora"]
SEQUENCES = ["s4"]
PUBLISHED = {
    **{"gpt2": 124_439_808, "pythia": 162_322_944, "llama2": 6_738_415_616, "mistral": 7_241_732_096},
    "mixtral": 46_702_792_704,
    "megablocks": 839_058_944,
    "deepspeed_moe": 4_116_745_240,
    "adaptive": 212_635_655,
}


def test_recipes_are_listed_by_file_name():
    assert {
        *LANDMARKS,
        *PICTURES,
        *WORDS,
        *TEACHING,
        *ENCODERS,
        *EMBEDDERS,
        *TRANSFER,
        *SEQ2SEQ,
        *PREFERENCES,
        *ADAPTING,
        *SEQUENCES,
        "quickstart",
    } == set(recipes.names())


def test_a_name_means_the_recipe_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(recipes.resolve("gpt2", {"seed": 7}).to_json())
    monkeypatch.chdir(tmp_path)
    assert recipes.resolve("gpt2").seed == 0
    for folder in ("./gpt2", "gpt2/", Path("gpt2"), "gpt2/config.json"):
        assert recipes.resolve(folder).seed == 7


@pytest.mark.parametrize("name", LANDMARKS)
def test_a_recipe_is_the_published_model_and_round_trips(name):
    run = recipes.resolve(name)
    assert count_parameters(run.model) == PUBLISHED[name]
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize("name", LANDMARKS)
def test_a_miniature_has_about_a_million_parameters(name):
    assert 0.8e6 < count_parameters(recipes.resolve(name, tiny=True).model) < 1.5e6


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_recipe_round_trips(name):
    for tiny in (False, True):
        run = recipes.resolve(name, tiny=tiny)
        assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize("name", [n if n == "vit" else pytest.param(n, marks=pytest.mark.slow) for n in PICTURES])
def test_a_picture_miniature_trains(name, tmp_path):
    tiny = recipes.resolve(name, tiny=True)
    result = onefold.train(tiny, out=str(tmp_path), **{"trainer.steps": 3, "trainer.batch": 16})
    assert result.status == "finished"
    assert "images per second" in (tmp_path / "report.html").read_text()


def test_own_parameters_and_dotted_paths_are_told_apart():
    run = recipes.resolve("gpt2", {"data": "notes/", "size": "medium", "trainer.steps": 7, "seed": 3})
    assert (run.data.sources[0].path, run.model.width, run.trainer.steps, run.seed) == ("notes/", 1024, 7, 3)


def test_a_config_file_is_a_recipe(tmp_path):
    run = recipes.resolve("llama2", tiny=True)
    (tmp_path / "my.json").write_text(run.to_json())
    assert recipes.resolve(tmp_path / "my.json", {"trainer.steps": 9}) == run.but({"trainer.steps": 9})


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean mistral"):
        recipes.resolve("mistrall")


@pytest.mark.parametrize("name", LANDMARKS)
def test_a_miniature_trains_and_loads(name, tmp_path):
    (tmp_path / "text").mkdir()
    for n in range(12):
        (tmp_path / "text" / f"{n}.txt").write_text(f"Line {n}: the quick brown fox jumps over the lazy dog.\n" * 20)
    result = onefold.train(
        name,
        tiny=True,
        data=str(tmp_path / "text"),
        out=str(tmp_path / "run"),
        **{"trainer.steps": 3, "trainer.batch": 2, "trainer.evaluate_every": 3},
    )
    assert result.status == "finished"
    assert result.log[-1]["held_out"]["bits_per_byte"] > 0
    model = onefold.load(tmp_path / "run")
    assert isinstance(model.generate("Line", max_new_tokens=4, temperature=0), str)
