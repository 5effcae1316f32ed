"""Marian's tokenizers against transformers' own, from models that SentencePiece has just trained."""

import json

import pytest

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer

ENGLISH = ["the cat sat on the mat", "a dog barks at the cat", "rain falls on the quiet town", "the town sleeps"] * 30
GERMAN = ["die Katze saß auf der Matte", "ein Hund bellt die Katze an", "Regen fällt auf die Stadt"] * 30
TEXTS = [
    "the dog sat",
    "  a quiet cat,  barks!",
    "Straße und Maß",
    ">>deu<< the town 中文 sleeps",
    "",
    "</s> the <pad> cat",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("marian")
    pieces: list[str] = []
    for name, texts in (("source", ENGLISH), ("target", GERMAN)):
        with (path / f"{name}.spm").open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=file,
                vocab_size=60,
                hard_vocab_limit=False,
                minloglevel=2,
                num_threads=1,
            )
        model = sentencepiece.SentencePieceProcessor(model_file=str(path / f"{name}.spm"))
        pieces += [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
    vocabulary = ["</s>", "<unk>", *sorted(set(pieces)), ">>deu<<", "<pad>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    settings = {"tokenizer_class": "MarianTokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_texts_become_the_ids_of_transformers_and_back(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.MarianTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    special = {theirs.eos_token_id, theirs.pad_token_id}
    for text, (ids, _) in zip(TEXTS, ours.encode_framed(TEXTS)):
        if not any(name in text for name in ("</s>", "<pad>")):
            assert ids == theirs(text)["input_ids"], text
        assert not special & set(ids[:-1])  # what a user types is no command
    assert (ours.end, ours.pad, ours.decoder_start) == (theirs.eos_token_id, theirs.pad_token_id, theirs.pad_token_id)
    said = theirs.convert_tokens_to_ids(["\u2581d", "a", "\u2581cat", "</s>", "<pad>"])
    assert ours.decode(said) == theirs.decode(said, skip_special_tokens=True)
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode_framed(TEXTS) == ours.encode_framed(TEXTS)


def test_folders_that_lack_something_are_refused(folder, tmp_path):
    (tmp_path / "source.spm").write_bytes((folder / "source.spm").read_bytes())
    with pytest.raises(UserError, match=r"needs vocab\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"</s>": 0, "<unk>": 1}')
    with pytest.raises(UserError, match="lacks <pad>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "<pad>": 9}')
    with pytest.raises(UserError, match="from 0 on"):
        Tokenizer.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(UserError, match="not a readable vocabulary"):
        Tokenizer.load(tmp_path)
