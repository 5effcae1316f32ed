import numpy as np
import pytest
import torch

from onefold.core.errors import UserError
from onefold.data.proteins.alphabet import AMINO_ACIDS, AminoAcids
from onefold.infer.proteins import contact_maps, embed_chains, residue_features, starts
from onefold.infer.text_encoder import TextEncoder
from onefold.interop.loaded import Loaded
from onefold.models.encoder_families import esm1b

LONGEST = 16


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 2, "context": LONGEST + 2, "block.mixer.heads": 2, "block.ffn.width": 32}
    config = esm1b().but({**small, "embed.position.context": LONGEST + 4})
    model = config.build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return TextEncoder(Loaded(config, model, AminoAcids().build()))


def chain(length, seed=0):
    return "".join(AMINO_ACIDS[i] for i in np.random.default_rng(seed).integers(20, size=length))


def read(encoder, text):
    """Features and contacts of a single chain that fits, by the model alone."""
    tokens = torch.tensor([[0, *encoder.tokenizer.encode(text), 2]])
    inside = torch.ones_like(tokens, dtype=torch.bool)
    inside[:, [0, -1]] = False
    with torch.no_grad():
        return encoder.network.features(tokens)[0, 1:-1], encoder.network.contacts(tokens, inside)[0, 1:-1, 1:-1]


def test_windows_cover_a_chain_and_overlap_by_half():
    assert starts(16, 16) == [0]
    assert starts(17, 16) == [0, 1]
    assert starts(40, 16) == [0, 8, 16, 24]
    for length in range(17, 80):
        begins = starts(length, 16)
        assert begins[-1] == length - 16
        assert max(np.diff(begins)) <= 8


def test_chains_of_different_lengths_are_read_as_each_alone(encoder):
    texts = [chain(n, n) for n in (3, 16, 9, 12)]
    for text, found, touch in zip(texts, residue_features(encoder, texts), contact_maps(encoder, texts), strict=True):
        features, contacts = read(encoder, text)
        torch.testing.assert_close(found, features)
        torch.testing.assert_close(touch, contacts)
    torch.testing.assert_close(embed_chains(encoder, texts)[2], read(encoder, texts[2])[0].mean(0))


def test_what_windows_of_a_long_chain_say_is_averaged(encoder):
    text, begins = chain(30), [0, 8, 14]
    sums, counts = torch.zeros(30, 30), torch.zeros(30, 30)
    features, seen = torch.zeros(30, 16), torch.zeros(30, 1)
    for start in begins:
        part, touch = read(encoder, text[start : start + LONGEST])
        own = slice(start, start + LONGEST)
        sums[own, own] += touch
        counts[own, own] += 1
        features[own] += part
        seen[own] += 1
    (found,) = contact_maps(encoder, [text])
    torch.testing.assert_close(found, sums / counts, equal_nan=True)
    assert found[0, 29].isnan()
    torch.testing.assert_close(next(residue_features(encoder, [text])), features / seen)


def test_what_is_no_chain_of_residues_is_refused(encoder):
    with pytest.raises(UserError, match="list of chains"):
        list(contact_maps(encoder, "MKV"))
    with pytest.raises(UserError, match="chains of amino acids"):
        list(contact_maps(encoder, [""]))
