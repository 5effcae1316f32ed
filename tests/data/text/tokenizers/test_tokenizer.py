import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from onefold.core.errors import UserError
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.chat.sandbox import DEFAULT_TEMPLATE
from onefold.data.text.documents import TrainBPE
from onefold.data.text.tokenizers.tokenizer import CHAT_TOKENS, ENCODER_TOKENS, END_OF_TEXT, T5_TOKENS, Tokenizer
from tests.data.conftest import prose

SAMPLES = ["", "a", " lead", "two  spaces \n\n\ttab", "héllo 東京 🙂🙂", "<|end|> <|endoftext|>", "x" * 500, "\x00\x7f"]


def test_special_tokens_come_first_and_frame_documents(tokenizer):
    assert [tokenizer.special[t] for t in (END_OF_TEXT, *CHAT_TOKENS)] == [0, 1, 2, 3, 4]
    assert tokenizer.bos == tokenizer.eos == tokenizer.start == tokenizer.end == 0
    assert tokenizer.stops == {0, tokenizer.special["<|end|>"]}
    assert 261 < tokenizer.size <= 400
    assert tokenizer.prompt("") == [0]
    assert tokenizer.prompt("the") == [0, *tokenizer.encode("the")]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_names_typed_by_a_user_stay_text(tokenizer):
    typed = "say <|end|> now"
    assert 4 not in tokenizer.encode(typed)
    assert tokenizer.encode(typed, special=True).count(4) == 1
    assert tokenizer.decode(tokenizer.encode(typed)) == typed
    assert tokenizer.decode(tokenizer.encode(typed, special=True)) == "say  now"
    assert tokenizer.decode(tokenizer.encode(typed, special=True), special=True) == typed


def test_a_batch_is_what_its_texts_are(tokenizer):
    texts = [*SAMPLES, *(prose(i, 50) for i in range(5))]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


def test_training_twice_gives_the_same(tokenizer):
    assert with_chat(Tokenizer.train((prose(i, 200) for i in range(20)), 400)).digest == tokenizer.digest
    assert with_chat(Tokenizer.train((prose(i, 200) for i in range(19)), 400)).digest != tokenizer.digest


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match="261"):
        Tokenizer.train(iter(["a"]), 260)


def test_transformers_opens_what_is_saved(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    assert again.digest == tokenizer.digest
    for text in SAMPLES:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, special=True)
        assert theirs(text)["input_ids"][1:] == tokenizer.encode(text, special=True)
        assert again.encode(text) == tokenizer.encode(text)
    assert theirs("a")["input_ids"][0] == tokenizer.start
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 0)
    messages = [{"role": "user", "content": "hi"}]
    shown = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == "<|endoftext|><|user|>hi<|end|><|assistant|>"


def test_more_special_tokens_get_the_next_ids(tokenizer):
    larger = tokenizer.add_special(["<|tool|>", "<|end|>"])
    assert larger.size == tokenizer.size + 1
    assert larger.encode("<|tool|>", special=True) == [tokenizer.size]
    assert larger.encode("the <|end|>", special=True) == tokenizer.encode("the <|end|>", special=True)
    assert larger.chat_template == DEFAULT_TEMPLATE
    assert "<|tool|>" not in tokenizer.special


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=40))
def test_streamed_text_is_the_decoded_text(tokenizer, ids):
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids)


def test_a_stream_never_shows_half_a_character(tokenizer):
    text = "ab 🙂 東京é end"
    stream = tokenizer.stream()
    shown = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(shown) == text
    assert not any("\ufffd" in part for part in shown)
    assert shown.count("") > 0  # 🙂 takes several tokens


def test_gpt2_vocab_and_merges(tokenizer, tmp_path):
    state = json.loads(tokenizer.backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in state["merges"])
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos == loaded.bos == 0
    for text in SAMPLES:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.prompt("a") == tokenizer.encode("a")  # GPT-2 puts nothing before a prompt
    assert loaded.prompt("") == [0]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("trim", [True, False])
def test_sentencepiece_models_give_the_ids_of_the_library(kind, rule, trim, tmp_path):
    spm = pytest.importorskip("sentencepiece")
    trained = io.BytesIO()
    lines = [line for i in range(60) for line in prose(i, 60).replace("+=", " ").split("\n")]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, model_type=kind, vocab_size=420, byte_fallback=True,
        normalization_rule_name=rule, remove_extra_whitespaces=trim, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(trained.getvalue())
    oracle = spm.SentencePieceProcessor(model_proto=trained.getvalue())
    ours = Tokenizer.load(tmp_path)
    for text in [*(s for s in SAMPLES if "<" not in s), *(prose(i, 40) for i in range(100, 130))]:
        assert ours.encode(text) == oracle.encode(text), text
        assert ours.decode(ours.encode(text)) == oracle.decode(oracle.encode(text)), text
    assert ours.prompt("the") == [oracle.bos_id(), *oracle.encode("the")]
    assert (ours.bos, ours.eos) == (oracle.bos_id(), oracle.eos_id())
    stream = ours.stream()
    ids = ours.encode("the green river 東京 🙂 runs")
    assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "T5Tokenizer", "extra_ids": 7}, {"extra_ids": 7}])
def test_what_the_sentencepiece_file_of_t5_does_not_say(settings, tmp_path):
    spm = pytest.importorskip("sentencepiece")
    trained, lines = io.BytesIO(), [prose(i, 60).replace("\n", " ") for i in range(60)]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, vocab_size=120, minloglevel=2, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(trained.getvalue())
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    oracle, ours = spm.SentencePieceProcessor(model_proto=trained.getvalue()), Tokenizer.load(tmp_path)
    count = settings["extra_ids"] if settings else 100
    assert ours.sentinels == list(range(oracle.vocab_size() + count - 1, oracle.vocab_size() - 1, -1))
    assert ours.encode_framed(["the model"]) == [
        ([*oracle.encode("the model"), 1], [0] * (len(ours.encode("the model")) + 1))
    ]
    assert (ours.pad, ours.end, ours.decoder_start, ours.prefix) == (0, 1, 0, [])
    gap = ours.encode("the<extra_id_0> runs", special=True)
    assert gap[1] == ours.sentinels[0]
    assert ours.sentinels[0] not in ours.encode("the<extra_id_0> runs")


def test_sentinels_stand_at_the_end(tmp_path):
    made = TrainBPE(vocab=300, special=T5_TOKENS, sentinels=5).build(prose(i, 50) for i in range(3))
    assert made.size == 300
    assert made.sentinels == [299, 298, 297, 296, 295]
    made.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.sentinels, again.decoder_start, again.digest) == (made.sentinels, 0, made.digest)


def test_everything_survives_saving(tokenizer, tmp_path):
    given = Tokenizer(tokenizer.backend, bos=None, eos=3, pad="<|user|>", chat_template="x", stops=[9])
    given.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.bos, again.eos, again.pad, again.chat_template, again.stops) == (None, 3, 2, "x", given.stops)
    assert again.digest == given.digest != given.with_template("y").digest
    assert 9 in again.stops


def test_side_files_are_heeded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {
        "eos_token": {"content": "<|end|>"},
        "add_bos_token": False,
        "chat_template": None,
        "added_tokens_decoder": {str(tokenizer.size): {"content": "<|new|>", "special": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 7]}')
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos == 4
    assert {4, 7} <= loaded.stops
    assert loaded.prefix == []
    assert loaded.chat_template == "{{ messages[0].content }}"
    assert loaded.encode("<|new|>", special=True) == [tokenizer.size]


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"tokenizer\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "tokenizer.model")


def test_only_conversations_bring_a_chat_template():
    """A model that was only pre-trained is not mistaken for one that answers."""
    assert Tokenizer.train(["some text"] * 3, 300).chat_template is None


def test_an_encoders_tokenizer_frames_texts_and_pairs_as_others_read_it(tmp_path):
    tokenizer = Tokenizer.train([prose(i, 100) for i in range(5)], 300, ENCODER_TOKENS)
    start, pad, end, _, mask = range(5)
    assert (tokenizer.start, tokenizer.pad, tokenizer.end, tokenizer.mask) == (start, pad, end, mask)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id) == (start, end, mask)
    a, b = tokenizer.encode_batch(["a model", "the river runs <mask>"])
    assert mask not in b
    [(alone, types)] = tokenizer.encode_framed(["a model"])
    assert alone == [start, *a, end] == theirs("a model")["input_ids"]
    assert not any(types)
    [(pair, _)] = tokenizer.encode_framed(["a model"], ["the river runs <mask>"])
    assert pair == [start, *a, end, end, *b, end]
    [(cut, _)] = tokenizer.encode_framed(["a model"], ["the river runs <mask>"], length=len(a) + 7)
    assert cut == [start, *a, end, end, *b[:3], end]


def test_bert_tells_the_second_text_by_its_type():
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = Tokenizer.train([prose(i, 100) for i in range(5)], 300, special)
    a, b = tokenizer.encode_batch(["a model", "the river"])
    [(ids, types)] = tokenizer.encode_framed(["a model"], ["the river"])
    assert ids == [2, *a, 3, *b, 3]
    assert types == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert (tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask) == (2, 3, 0, 4)
