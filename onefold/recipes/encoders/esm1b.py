"""ESM-1b (Rives et al. 2021, "Biological structure and function emerge from scaling unsupervised learning to 250
million protein sequences"; contacts: Rao et al. 2020, "Transformer protein language models are unsupervised structure
learners", bioRxiv 2020.12.15.422761).

Claim: an encoder that only fills in hidden amino acids learns which residues touch. Its attention shows it: a logistic
regression on few structures reads contacts off, as precisely as models of alignments do (Potts models).

`data` is a file or folder of FASTA, or "synthetic": families sampled from Potts models of which one knows all contacts.
They are made up, and judged on nothing else than whether contacts are found; no figure of theirs is one of nature.

Deviations: short chains share a row and do not see each other. The contact head is fitted afterwards
(`onefold proteins fit`), on structures of yours.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from onefold.data.proteins import potts
from onefold.data.proteins.masked import ProteinData
from onefold.data.text.documents import Source
from onefold.infer.evaluation.contact_precision import precision
from onefold.infer.evaluation.couplings import alignment, mean_field
from onefold.infer.model import load
from onefold.infer.proteins import contact_maps
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from onefold.models import encoder_families as models
from onefold.models.transformer import count_parameters
from onefold.recipes.encoders import _encoders as encoders
from onefold.study.check import Report
from onefold.study.pages.contacts import contact_chart
from onefold.training.optimizers.optim import AdamWConfig
from onefold.training.optimizers.schedule import InverseSqrt
from onefold.training.proteins.contacts import Example, fit_contacts
from onefold.training.run import Run
from onefold.training.trainer import TrainerConfig

READ = 16  # chains of a family whose maps are averaged


def recipe(data: str = potts.SYNTHETIC) -> Run:
    """652M parameters on 1,022 residues; 2¹⁷ tokens a step, as many as 128 GPUs held."""
    return Run(
        data=ProteinData(sources=(Source(path=data),)),
        model=models.esm1b(),
        optimizer=AdamWConfig(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0),
        trainer=TrainerConfig(
            steps=500_000,
            batch=128,
            clip=None,
            schedule=InverseSqrt(warmup=16_000),
            evaluate_every=5000,
            checkpoint_every=5000,
        ),
        out="runs/esm1b",
    )


def tiny(data: str = potts.SYNTHETIC) -> Run:
    """100,000 parameters; rows are as long as synthetic chains, or 128 residues of others. Under a minute on a core."""
    longest = potts.LENGTH if data == potts.SYNTHETIC else 128
    return recipe(data).but(
        {
            "data.context": longest + 2,
            "model": {"width": 64, "depth": 2, "context": longest + 2, "init": "fan_in"},
            "model.embed.position.context": longest + 4,
            "model.block": {"mixer": {"heads": 4}, "ffn": {"width": 256}},
            "optimizer": {"lr": 6e-3, "betas": (0.9, 0.98), "weight_decay": 0.01},
            "trainer": {"steps": 800, "batch": 64, "clip": 1.0, "evaluate_every": 800, "checkpoint_every": 800},
            "trainer.schedule": {"kind": "linear", "warmup": 0.1},
        }
    )


def check(report: Report) -> None:
    """The exact size; hidden residues are found; attention shows contacts of families that it was not fitted on."""
    report.equal("parameters", count_parameters(models.esm1b()), 652_359_094)
    results = encoders.seeded(tiny(), "esm1b")
    encoders.fills_in(report, results)
    trained = [load(result.out) for result in results]
    fresh = [_untrained(result.run, encoder) for result, encoder in zip(results, trained)]
    after, before = ([_misses(encoder) for encoder in some] for some in (trained, fresh))
    asked = f"synthetic: share of the L/2 surest pairs that do not touch, maps of {READ} chains"
    report.less(f"{asked}, against untrained", after, before)
    chance = 1 - fmean(each.contacts()[np.triu_indices(each.length, potts.NEAREST)].mean() for each in potts.families())
    report.less(f"{asked}, against pairs at random", after, chance)
    report.note("the same from single chains", [_misses(encoder, single=True) for encoder in trained])
    for count in (READ, 200, potts.CHAINS):
        misses = [
            1 - precision(mean_field(alignment(_chains(i)[:count])), each.contacts(), share=0.5)
            for i, each in enumerate(potts.families())
        ]
        report.note(f"the same by mean-field DCA of {count:,} chains", fmean(misses))
    report.published("long-range P@L of real structures, in %", 41.1)
    made, scores = potts.families()[1], np.mean(_maps(trained[0], fitted=0, judged=1), axis=0)
    report.chart("contacts of a synthetic family", contact_chart(scores, made.contacts(), title="a synthetic family"))
    _real_folds(report)


def _untrained(run: Run, trained: TextEncoder) -> TextEncoder:
    torch.manual_seed(run.seed)
    return TextEncoder(Loaded(trained.config, trained.config.build().eval(), trained.tokenizer))


def _misses(encoder: TextEncoder, single: bool = False) -> float:
    """Of each synthetic family the share of the L/2 surest pairs that do not touch, by a head fitted on the other."""
    found = []
    for judged, made in enumerate(potts.families()):
        maps = _maps(encoder, fitted=1 - judged, judged=judged)
        for scores in maps if single else [np.mean(maps, axis=0)]:
            found.append(1 - precision(scores, made.contacts(), share=0.5))
    return fmean(found)


def _maps(encoder: TextEncoder, fitted: int, judged: int) -> list[np.ndarray]:
    """Float[L, L] of some chains of one synthetic family, once the head is fitted on those of another."""
    touch = potts.families()[fitted].contacts()
    fit_contacts(encoder, [Example(text, touch) for text in _chains(fitted)[:READ]])
    return [found.numpy() for found in contact_maps(encoder, _chains(judged)[:READ])]


@cache
def _chains(family: int) -> list[str]:
    """Chains of a synthetic family that no model was trained on."""
    return potts.letters(potts.families()[family].sample(potts.CHAINS, 1000 + family))


def _real_folds(report: Report) -> None:
    """Where the package MDAnalysisTests is installed: synthetic families whose contacts are those of real folds."""
    package, gemmi = find_spec("MDAnalysisTests"), find_spec("gemmi")
    if package is None or gemmi is None or not package.submodule_search_locations:
        report.note("real folds", "not looked at: that takes the packages gemmi and MDAnalysisTests")
        return
    from onefold.data.proteins.structures import read_structures

    folder = Path(package.submodule_search_locations[0]) / "data" / "dssp"
    for name in ("2cviA", "1lpbA", "2xdgA"):
        (structure,) = read_structures(folder / f"{name}.pdb.gz")
        pairs = np.argwhere(np.triu(structure.contacts(), potts.NEAREST))
        fields = np.zeros((len(structure.sequence), 20))
        made = potts.Potts(fields, pairs, potts.couplings(len(pairs), 0, strength=0.5))
        scores = mean_field(alignment(potts.letters(made.sample(500, 0))))
        report.note(
            f"synthetic family on the fold of {name}: P@L by mean-field DCA", precision(scores, made.contacts())
        )
