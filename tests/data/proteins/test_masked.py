import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import AMINO_ACIDS, AminoAcids
from onefold.data.proteins.masked import ProteinData
from onefold.models.encoder_families import esm1b

LONG = 100
SMALL = {"context": 34, "held_out": 0.3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    generator = np.random.default_rng(0)
    lengths = [LONG] * 20 + [10] * 20 + [32] * 20
    texts = ["".join(AMINO_ACIDS[i] for i in generator.integers(20, size=n)) for n in lengths]
    (folder / "all.fasta").write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(texts)))
    return ProteinData(sources=str(folder)).but(SMALL).prepare(folder / "out")


def pieces(batch):
    """(seen, targets, weights) of every chain or part of one, without <cls> and <eos>."""
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights):
        ends = (targets == 2).nonzero()[:, 0].tolist()
        for begin, end in zip((targets == 0).nonzero()[:, 0].tolist(), ends, strict=True):
            yield tokens[begin + 1 : end], targets[begin + 1 : end], weights[begin + 1 : end]


def epoch(dataset, number):
    with dataset.loader("train", 4, 0, state={"epoch": number, "seen": 0}) as loader:
        return [next(loader) for _ in range(dataset.plan("train", 4, 0, number).batches)]


def test_the_vocabulary_is_that_of_esm():
    vocabulary = AminoAcids().build().vocabulary
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    assert [vocabulary[name] for name in names] == list(range(33))
    tokenizer = AminoAcids().build()
    assert (tokenizer.start, tokenizer.pad, tokenizer.end, tokenizer.mask) == (0, 1, 2, 32)
    assert tokenizer.encode("LAX-.C") == [4, 5, 24, 30, 29, 23]


def test_an_epoch_has_one_part_of_every_long_chain_at_other_places_in_the_next(dataset):
    text = {d.text for d in dataset.text("train")}
    seen = []
    for number in range(2):
        found = [dataset.tokenizer.decode(t.tolist()) for b in epoch(dataset, number) for _, t, _ in pieces(b)]
        assert len(found) == len(text)
        assert {whole for whole in text if len(whole) <= 32} <= set(found)
        parts = {part for part in found if part not in text}
        assert all(len(part) == 32 for part in parts)
        assert len({whole for part in parts for whole in text if part in whole}) == len(parts)
        seen.append(parts)
    assert not seen[0] & seen[1]


def test_parts_lie_anywhere_in_a_chain(dataset):
    offsets = [p.offset.tolist() for n in range(200) for p in [dataset.plan("train", 4, 0, n).pieces]]
    counts = np.bincount([o for some in offsets for o in some if o], minlength=LONG - 31)[1:]
    assert len(counts) == LONG - 32
    assert counts.min() > 0
    assert counts.max() < 3 * counts.mean()


def test_an_evaluation_asks_for_residues_of_all_windows_once(dataset):
    tokens = [d.text for d in dataset.text("held_out")]
    assert any(len(text) == LONG for text in tokens)
    asked = windows = 0
    for batch in dataset.evaluation("held_out", 4):
        asked += int(batch.weights.sum())
        windows += sum(1 for _ in pieces(batch))
    assert windows > len(tokens)
    share = asked / sum(map(len, tokens))
    assert 0.1 < share < 0.2  # 15% of all, not more where windows overlap


def test_copies_are_told_and_lie_in_one_split(tmp_path, capsys):
    chains = ["ACDEFGHIKL"[i:] + "MNPQRSTVWY"[: i + 3] for i in range(6)] * 2
    (tmp_path / "all.fasta").write_text("".join(f">{i}\n{chain}\n" for i, chain in enumerate(chains)) + ">none\n")
    made = ProteinData(sources=str(tmp_path / "all.fasta")).but(SMALL).prepare(tmp_path / "out")
    told = capsys.readouterr()
    assert "1 empty left out; 6 are copies of others, the first all.fasta:13" in told.out + told.err
    train, held_out = ({d.text for d in made.text(split)} for split in ("train", "held_out"))
    assert held_out
    assert not train & held_out


def test_masks_are_berts(dataset):
    seen, targets, weights = (
        torch.cat(parts) for parts in zip(*(p for n in range(30) for b in epoch(dataset, n) for p in pieces(b)))
    )
    asked = weights > 0
    assert asked.float().mean() == pytest.approx(0.15, abs=0.01)
    assert (seen[asked] == 32).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[asked] == targets[asked]).float().mean() == pytest.approx(0.1, abs=0.02)
    assert not (seen == 31).any()  # <null_1> is no letter
    assert torch.equal(seen[~asked], targets[~asked])


def test_token_dropout_has_to_expect_these_masks(dataset):
    model = esm1b().but({"depth": 1})
    assert dataset.fit(model, grow=False) == model
    with pytest.raises(UserError, match=r"token_dropout\.mask is 5"):
        dataset.fit(model.but({"embed.token_dropout.mask": 5}), grow=False)
    with pytest.raises(UserError, match=r"rate is 0\.3, but data\.masking hides 0\.12"):
        dataset.fit(model.but({"embed.token_dropout.rate": 0.3}), grow=False)
