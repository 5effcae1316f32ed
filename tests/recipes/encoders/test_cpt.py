"""cpt resolves to runs of the paper's sizes, and its miniature trains, from scratch and from a model that writes."""

import pytest

import onefold
from onefold import recipes
from onefold.core.errors import UserError
from onefold.infer.embedder import TextEmbedder
from onefold.recipes.encoders import cpt
from onefold.training.run import Run

FUNCTION = 'def f{n}(x):\n    """Return {n} more than the number that it was given."""\n    return x + {n}\n\n\n'


@pytest.fixture
def source(tmp_path):
    for module in range(6):
        text = "".join(FUNCTION.format(n=10 * module + n) for n in range(8))
        (tmp_path / f"m{module}.py").write_text(text)
    return tmp_path


def test_sizes_and_batches_are_those_of_the_paper():
    for size, batch in (("s", 12_288), ("m", 6_912), ("l", 5_896), ("xl", 4_976)):
        run = recipes.resolve("cpt", {"size": size})
        assert run.trainer.batch == batch
        assert run.model.pooling == "last"
        assert Run.from_json(run.to_json()) == run
    with pytest.raises(UserError, match="use text or code"):
        recipes.resolve("cpt", {"what": "sound"})


def test_a_miniature_trains_and_makes_vectors(source, tmp_path):
    short = {"trainer.steps": 3, "trainer.batch": 8, "trainer.evaluate_every": 3, "data.held_out": 0.2}
    vocabulary = {"data.tokenizer.vocab": 400, "model.trunk.vocab": 400}
    result = onefold.train("cpt", tiny=True, data=str(source), out=str(tmp_path / "cpt"), **short, **vocabulary)
    assert result.status == "finished"
    assert (tmp_path / "cpt" / "report.html").is_file()
    model = onefold.load(tmp_path / "cpt")
    assert isinstance(model, TextEmbedder)
    assert model.kinds == ("query", "document")
    assert not model.embed(["x"], "query").equal(model.embed(["x"], "document"))
    first = model.encode(["x"], "query")[0]
    assert (model.tokenizer.decode(first[:1]), model.tokenizer.decode(first[-1:])) == cpt.DELIMITERS[0]


def test_it_begins_with_a_model_that_writes(source, tmp_path):
    trunk = cpt.small_trunk().but({"vocab": 400})
    writer = Run.from_dict(
        {
            "data": {
                "sources": [str(source)],
                "kind": "text",
                "context": 48,
                "tokenizer": {"kind": "bpe", "vocab": 400},
            },
            "model": trunk.to_dict(),
            "trainer": {"steps": 1, "batch": 4},
            "out": str(tmp_path / "writer"),
        }
    )
    onefold.train(writer)
    short = {"trainer.steps": 2, "trainer.batch": 8, "trainer.evaluate_every": 2, "optimizer.lr": 1e-9}
    start = str(tmp_path / "writer")
    onefold.train("cpt", tiny=True, data=str(source), start=start, out=str(tmp_path / "cpt"), **short)
    before, after = onefold.load(start), onefold.load(tmp_path / "cpt")
    assert after.config.trunk == trunk
    assert after.tokenizer.digest == before.tokenizer.digest
    assert (before.network.embed.token.weight - after.network.trunk.embed.token.weight).abs().max() < 1e-6
