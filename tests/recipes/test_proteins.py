import numpy as np
import pytest

import onefold
from onefold import recipes
from onefold.data.proteins import potts
from onefold.data.proteins.alphabet import AMINO_ACIDS
from onefold.infer.proteins import embed_chains
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import esm1b
from onefold.training.optimizers.schedule import InverseSqrt
from onefold.training.run import Run

QUICK = {"trainer.steps": 3, "trainer.batch": 4, "trainer.evaluate_every": 3, "trainer.evaluate_batches": 2}


def test_the_recipe_is_the_published_setting_and_round_trips():
    run = recipes.resolve("esm1b", {"data": "uniref50.fasta.gz"})
    assert count_parameters(run.model) == 652_359_094
    assert (run.data.context, run.trainer.batch * run.data.context) == (1024, 2**17)
    assert (run.optimizer.lr, run.trainer.schedule) == (1e-4, InverseSqrt(warmup=16_000))
    assert (run.data.masking.rate, run.data.masking.masked, run.data.masking.random) == (0.15, 0.8, 0.1)
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize("data", ["fasta", potts.SYNTHETIC])
def test_a_miniature_trains_and_reads_chains(data, tmp_path, monkeypatch):
    monkeypatch.setattr(potts, "CHAINS", 40)
    if data == "fasta":
        generator = np.random.default_rng(0)
        chains = ("".join(AMINO_ACIDS[i] for i in generator.integers(20, size=n)) for n in [30, 200] * 20)
        data = str(tmp_path / "all.fasta")
        (tmp_path / "all.fasta").write_text("".join(f">{i}\n{chain}\n" for i, chain in enumerate(chains)))
    result = onefold.train("esm1b", tiny=True, data=data, out=str(tmp_path / "run"), **QUICK)
    assert result.status == "finished"
    assert (tmp_path / "run" / "report.html").is_file()
    encoder = onefold.load(tmp_path / "run")
    assert embed_chains(encoder, ["MKV" * 100]).shape == (1, 64)
    name, score = encoder.fill_mask("MKV<mask>LAG")[0][0]
    assert name in encoder.tokenizer.vocabulary
    assert score > 0


def test_synthetic_families_differ_and_stay_the_same():
    first, second = potts.families()
    assert first.length == second.length == potts.LENGTH
    touching = first.contacts() & second.contacts()
    assert touching.sum() < 0.5 * first.contacts().sum()
    assert abs(first.pairs[:, 0] - first.pairs[:, 1]).min() >= potts.NEAREST
    assert (potts.families()[0].pairs == first.pairs).all()


def test_a_miniature_says_how_long_its_rows_are():
    assert esm1b.tiny().data.context == potts.LENGTH + 2
    assert esm1b.tiny("some.fasta").data.context == 130
