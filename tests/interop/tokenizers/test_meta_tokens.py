"""The makers' tokenizers, rebuilt from ranked bytes, against tiktoken."""

import base64
import json

import pytest

from onefold.core.errors import UserError
from onefold.data.text.chat.messages import chat_ids
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.tokenizers.meta_tokens import load_makers_tokenizer
from onefold.interop.tokenizers.vocabulary import LLAMA3_PATTERN, TEKKEN_PATTERN, byte_letters

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken, the oracle here, is not installed")
TEXTS = [__doc__, "It's  WE'LL\n\n 1234567 ½🙂 \t x", "ranked.bytes(rebuiltTekken)", "你好 \u200d//\n"]
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "?"}]


@pytest.fixture(scope="module")
def ranked() -> list[bytes]:
    """A vocabulary with real merges: ours, its printable letters turned back into bytes, in order of rank."""
    trained = Tokenizer.train(
        [__doc__ * 4, "def tokens(params, weights): return 12345, rebuiltTekken"], 330, special=()
    )
    byte = {letter: number for number, letter in byte_letters().items()}
    pieces = sorted(trained.vocabulary.items(), key=lambda item: item[1])
    return [bytes(byte[letter] for letter in piece) for piece, _ in pieces]


def oracle(ranked: list[bytes], pattern: str):
    ranks = {token: rank for rank, token in enumerate(ranked)}
    return tiktoken.Encoding("oracle", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def test_llama_3(ranked, tmp_path):
    lines = [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(ranked)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    ours, n = load_makers_tokenizer(tmp_path), len(ranked)
    for text in TEXTS:
        assert ours.encode(text) == oracle(ranked, LLAMA3_PATTERN).encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.size == n + 256
    assert ours.special["<|begin_of_text|>"] == n
    assert ours.special["<|eot_id|>"] == n + 9
    assert ours.special["<|reserved_special_token_247|>"] == n + 255
    assert ours.prefix == [n]
    assert {n + 1, n + 8, n + 9} <= ours.stops
    shown = ours.decode(chat_ids(MESSAGES[:1], ours), special=True)
    assert shown == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n!!! 1\n")
    with pytest.raises(UserError, match="not lines of base64"):
        load_makers_tokenizer(tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_tekken(listed, ranked, tmp_path):
    n = len(ranked)
    entries = [{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate([*ranked, b"unused"])]
    content = {"config": {"default_num_special_tokens": 30, "default_vocab_size": n + 30}, "vocab": entries}
    if listed:
        names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[NEW]"]
        content["special_tokens"] = [{"rank": i, "token_str": name} for i, name in enumerate(names)]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    ours = load_makers_tokenizer(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == [30 + i for i in oracle(ranked, TEKKEN_PATTERN).encode(text)]
    assert ours.size == n + 30
    assert ours.special["[NEW]" if listed else "[AVAILABLE_TOOLS]"] == 5
    assert ours.special["<SPECIAL_29>"] == 29
    shown = ours.decode(chat_ids(MESSAGES, ours), special=True)
    assert shown == "<s>[INST]hi[/INST]yo</s>[INST]?[/INST]"
    with pytest.raises(UserError, match="roles user and assistant, not tool"):
        chat_ids([{"role": "tool", "content": "x"}], ours)
    (tmp_path / "tekken.json").write_text('{"vocab": []}')
    with pytest.raises(UserError, match="not a tokenizer of Mistral's"):
        load_makers_tokenizer(tmp_path)
