"""Tokenizers from what model files hold, against SentencePiece, llama.cpp and transformers."""

import io
import textwrap
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.gguf import save_gguf
from onefold.interop.gguf.container import open_container
from onefold.interop.gguf.vocab import read_tokenizer, write_tokenizer
from onefold.interop.loaded import Loaded
from onefold.interop.tokenizers.vocabulary import CUTS, byte_letters, byte_level, cut_of, cutter, frame, mark_special
from onefold.models.families import llama2
from tests.interop.llama_oracle import ask

TEXTS = [
    "Hello  world, it's THEY'LL 12345678 x²\n\n\t def f(x):\r\n   return x // 你好 🙂 é",
    "camelCase HTTPServer  ÀÉÎ straße\n  \n",
    " leading, trailing  ",
    Path(textwrap.__file__).read_text()[:2500],
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train([*TEXTS, Path(pytest.__file__).read_text()], 700, minimum=1)


def with_cut(trained: Tokenizer, cut: str) -> Tokenizer:
    """A byte-level tokenizer that cuts words in this way; ids as `trained` has them."""
    import json

    model = json.loads(trained.backend.to_str())["model"]
    backend = byte_level(model["vocab"], [tuple(merge) for merge in model["merges"]], cut)
    mark_special(backend, ["<|endoftext|>", "<|end|>"], ["<|user|>"])
    frame(backend, "<|endoftext|>", None)
    return Tokenizer(backend, "<|endoftext|>", "<|end|>")


def test_byte_letters_are_gpt2s():
    assert len(set(byte_letters().values())) == 256
    assert set(byte_letters().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    ours = "".join(byte_letters()[byte] for byte in "é \n".encode())
    [(theirs, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é \n")
    assert ours == theirs


def test_every_way_of_cutting_is_known_again(trained):
    assert {cut: cut_of(with_cut(trained, cut).backend) for cut in CUTS} == {cut: cut for cut in CUTS}
    assert cut_of(trained.backend) == "gpt-2"  # what we train, llama.cpp can read
    assert cut_of(Backend(models.BPE())) is None
    other = Backend(models.BPE())
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    assert cut_of(other) is None
    with pytest.raises(KeyError):
        cutter("klingon")


def fitting(tokenizer: Tokenizer) -> Loaded:
    size = {"vocab": tokenizer.size + 3, "width": 32, "depth": 1, "block.mixer": {"heads": 2}, "block.ffn.width": 32}
    config = llama2().but({**size, "context": 64})
    return Loaded(config, config.build(), tokenizer)


def test_llama_cpp_cuts_as_we_do(trained, tmp_path):
    tokenizers = {cut: with_cut(trained, cut) for cut in CUTS}
    for cut, tokenizer in tokenizers.items():
        save_gguf(tmp_path / f"{cut}.gguf", fitting(tokenizer))
    texts = [*TEXTS, "a<|end|>b <|user|> c"]
    said = ask(*({"model": tmp_path / f"{cut}.gguf", "tokenize": texts} for cut in tokenizers))
    encodings = set()
    for (cut, tokenizer), answer in zip(tokenizers.items(), said, strict=True):
        ours = [tokenizer.encode(text, special=True) for text in texts]
        assert answer["tokens"] == ours, cut
        assert all(tokenizer.decode(ids, special=True) == text for ids, text in zip(ours, texts, strict=True))
        encodings.add(str(ours))
    assert len(encodings) > 3  # the ways do differ on these texts


@pytest.fixture(scope="module", params=[True, False])
def pieces(request, tmp_path_factory) -> Path:
    """A SentencePiece BPE with byte fallback, with and without the space before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((TEXTS[3] + Path(pytest.__file__).read_text()).splitlines()),
        model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=request.param,
        user_defined_symbols=["<|user|>"], minloglevel=2,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file


def test_scored_pieces_in_a_file_cut_as_sentencepiece_and_llama_cpp_do(pieces, tmp_path):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    loaded = fitting(Tokenizer.load(pieces))
    save_gguf(tmp_path / "m.gguf", loaded)
    ours = read_tokenizer(open_container(tmp_path / "m.gguf").metadata, "m.gguf")
    expected = [theirs.encode(text) for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == expected
    assert [ours.decode(ids) for ids in expected] == [theirs.decode(ids) for ids in expected]
    assert ours.prefix == loaded.tokenizer.prefix == [theirs.bos_id()]
    assert ours.eos == theirs.eos_id()
    marked = "a<|user|> b</s>c"  # llama.cpp, unlike SentencePiece, starts again with a space behind such a token
    [said] = ask({"model": tmp_path / "m.gguf", "tokenize": [*TEXTS, marked]})
    assert said["tokens"] == [*expected, ours.encode(marked, special=True)]


def test_true_scores_are_read_too(pieces):
    """A file by llama.cpp's own converter holds SentencePiece's scores."""
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    ids = range(theirs.get_piece_size())
    kinds = [
        3 if theirs.is_control(i) else 2 if theirs.is_unknown(i) else 6 if theirs.is_byte(i)
        else 4 if theirs.id_to_piece(i) == "<|user|>" else 1 for i in ids
    ]  # fmt: skip
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": theirs.encode("a", out_type=str)[0].startswith("▁"),
    }
    ours = read_tokenizer(values, "m.gguf")
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert (ours.bos, ours.eos, ours.prefix) == (1, 2, [1])


def test_tokenizers_that_llama_cpp_lacks_are_refused(trained):
    lower = trained.backend
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="rewrites text"):
        write_tokenizer(Tokenizer(lower), 700, "m.gguf")
    words = trained.backend
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="no name for how"):
        write_tokenizer(Tokenizer(words), 700, "m.gguf")
    with pytest.raises(UserError, match="BPE tokenizers only, not WordLevel"):
        write_tokenizer(Tokenizer(Backend(models.WordLevel({"a": 0}, unk_token="a"))), 3, "m.gguf")
