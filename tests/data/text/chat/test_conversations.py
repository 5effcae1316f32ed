import json
import random

import pytest
import torch

from onefold.core.batch import TokenBatch
from onefold.core.errors import UserError
from onefold.data.text.chat.conversations import ChatData
from onefold.data.text.chat.messages import encode_chat
from onefold.data.text.documents import TextData, TrainBPE
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.models import families
from onefold.objectives.language import NextToken
from tests.data.conftest import prose
from tests.data.text.chat.test_messages import PLAIN


def talk(seed: int, turns: int = 2, words: int = 8) -> list[dict]:
    messages = [{"role": "system", "content": f"be number {seed}"}]
    for t in range(turns):
        messages.append({"role": "user", "content": prose(seed * 100 + t, words)})
        messages.append({"role": "assistant", "content": f"answer {seed} {t} " + prose(seed * 100 + 50 + t, words)})
    return messages


def write(file, conversations):
    file.write_text("\n".join(json.dumps({"messages": m}) for m in conversations))
    return str(file)


def rows(dataset, split, size=4):
    """What each segment learns, as text."""
    found = []
    for batch in dataset.evaluation(split, size):
        for row in range(size):
            segments = batch.segments[row] if batch.segments is not None else batch.tokens[row] * 0
            for s in segments.unique():
                mine = segments == s
                learned = batch.targets[row][mine][batch.weights[row][mine] > 0].tolist()
                if learned:
                    found.append(dataset.tokenizer.decode(learned, special=True))
    return found


def test_every_answer_is_learned_once(tokenizer, tmp_path):
    talks = [talk(i, turns=1 + i % 3) for i in range(40)]
    config = ChatData(path=write(tmp_path / "c.jsonl", talks), context=512, held_out=0.1)
    dataset = config.prepare(tmp_path / "out", tokenizer)
    found = sorted(rows(dataset, "train") + rows(dataset, "held_out"))
    expected = ["".join(m["content"] + "<|end|>" for m in t if m["role"] == "assistant") for t in talks]
    assert found == sorted(expected)
    assert dataset.facts["held_out"]["documents"] == 4
    answers = sum(len(m["content"].encode()) for t in talks for m in t if m["role"] == "assistant")
    assert dataset.bytes("train") + dataset.bytes("held_out") == answers
    first = next(dataset.text("train"))
    assert first.name.startswith("c.jsonl:")
    assert first.text.startswith("<|endoftext|><|system|>be number")
    with dataset.loader("train", 4, 0) as batches:
        assert 0 < float(next(batches).weights.mean()) < 1


def test_long_conversations_forget_their_oldest_turns(tokenizer, tmp_path, capsys):
    talks = [talk(i) for i in range(20)] + [talk(20, turns=9), talk(21, turns=1, words=400)]
    config = ChatData(path=write(tmp_path / "c.jsonl", talks), context=128, held_out=0)
    dataset = config.prepare(tmp_path / "out", tokenizer)
    assert dataset.facts["shortened"] >= 1
    assert dataset.facts["skipped"] == 1
    assert "shortened to their latest turns, 1 too long and skipped" in capsys.readouterr().err
    texts = [d.text for d in dataset.text("train") if "be number 20<|end|>" in d.text]
    assert len(texts) == 1
    assert texts[0].startswith("<|endoftext|><|system|>be number 20<|end|><|user|>")
    assert "answer 20 8" in texts[0]
    assert "answer 20 0" not in texts[0]
    skipping = config.but({"too_long": "skip"}).prepare(tmp_path / "out", tokenizer)
    assert skipping.facts["skipped"] == 1 + dataset.facts["shortened"]
    assert skipping.facts["shortened"] == 0
    plan = dataset.plan("train", 4, 0, 0)
    assert (plan.pieces.offset == 0).all()  # no conversation is cut


def test_the_last_answer_only(tokenizer, tmp_path):
    talks = [talk(i, turns=1 + i % 3) for i in range(12)]
    config = ChatData(path=write(tmp_path / "c.jsonl", talks), held_out=0, learn="last")
    assert sorted(rows(config.prepare(tmp_path / "out", tokenizer), "train")) == sorted(
        t[-1]["content"] + "<|end|>" for t in talks
    )


def test_another_template_travels_with_the_tokenizer(tokenizer, tmp_path, capsys):
    path = write(tmp_path / "c.jsonl", [talk(i) for i in range(5)])
    dataset = ChatData(path=path, held_out=0, template="chatml").prepare(tmp_path / "out", tokenizer)
    assert dataset.tokenizer.size == tokenizer.size + 2
    assert "new to the model, and learned from nothing: <|im_start|> <|im_end|>" in capsys.readouterr().err
    assert next(dataset.text("train")).text.startswith("<|im_start|>system\n")
    assert rows(dataset, "train")[0].endswith("<|im_end|>")
    file = tmp_path / "own.jinja"
    own = ChatData(path=path, held_out=0, template=str(file))
    form = "{% for m in messages %}{{ '#' ~ m.content ~ '\\n' }}{% endfor %}{% if add_generation_prompt %}#{% endif %}"
    for mark in "#", "$":
        file.write_text(form.replace("#", mark))
        changed = own.prepare(tmp_path / "out", tokenizer)  # it is made anew when the file has changed
        assert next(changed.text("train")).text.startswith(f"{mark}be number")


def test_bad_rows_stop_or_are_left_out(tokenizer, tmp_path, capsys):
    path = write(tmp_path / "c.jsonl", [talk(0), [*talk(1), *talk(1)[1:2] * 2], talk(2), talk(3)[:2], talk(4)])
    config = ChatData(path=path, held_out=0)
    with pytest.raises(UserError, match=r"c.jsonl:2: messages 6 and 7 are both of the user"):
        config.prepare(tmp_path / "out", tokenizer)
    dataset = config.but({"skip_bad": True}).prepare(tmp_path / "out", tokenizer)
    assert [d.name for d in dataset.text("train")] == ["c.jsonl:1", "c.jsonl:3", "c.jsonl:5"]
    assert dataset.facts["bad"] == 2
    assert f"2 left out, the first: {path}:2: messages 6" in capsys.readouterr().err
    stern = tokenizer.with_template(
        "{% if messages | length > 4 %}{{ raise_exception('too much') }}{% endif %}" + PLAIN
    )
    path = write(tmp_path / "d.jsonl", [talk(0, turns=1), talk(1)])
    with pytest.raises(UserError, match=r"^d.jsonl:2: the chat template refuses these messages: too much"):
        ChatData(path=path, held_out=0).prepare(tmp_path / "out", stern)


def test_packed_is_unpacked(tokenizer, tmp_path):
    """Conversations that share a row neither see nor weigh on one another: loss and gradients of each alone, added."""
    talks = [talk(i, turns=1 + i % 2, words=3) for i in range(12)]
    dataset = ChatData(path=write(tmp_path / "c.jsonl", talks), held_out=0, context=160).prepare(tmp_path, tokenizer)
    torch.manual_seed(0)
    small = {"vocab": tokenizer.size, "width": 16, "depth": 2, "context": 160, "block.mixer.heads": 2}
    model = families.llama2().but({**small, "block.mixer.kv_heads": 1, "block.ffn.width": 24}).build()
    ce = NextToken().build({})

    def measured(batches):
        """Sum and count of the loss, and gradients of the mean."""
        model.zero_grad()
        terms = [ce(model, batch, 0).terms["ce"] for batch in batches]
        count = sum(float(term.count) for term in terms)
        total = sum(term.sum for term in terms)
        (total / count).backward()
        return float(total.detach()), count, [p.grad.clone() for p in model.parameters()]

    packed = list(dataset.evaluation("train", 4))
    assert packed[0].segments is not None
    alone = []
    for messages in talks:
        ids, learned = encode_chat(messages, tokenizer)
        alone.append(
            TokenBatch(
                tokens=torch.tensor([ids[:-1]]),
                targets=torch.tensor([ids[1:]]),
                weights=torch.tensor([learned[1:]], dtype=torch.float32),
            )
        )
    (loss, count, gradients), (loss_alone, count_alone, alone_gradients) = measured(packed), measured(alone)
    assert count == count_alone
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    for ours, theirs in zip(gradients, alone_gradients):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_own_validation_and_copies(tokenizer, tmp_path):
    config = ChatData(
        path=write(tmp_path / "c.jsonl", [talk(i) for i in range(10)]),
        validation=write(tmp_path / "v.jsonl", [talk(3), talk(77)]),
    )
    dataset = config.prepare(tmp_path / "out", tokenizer)
    assert dataset.facts["train"]["documents"] == 9
    assert [d.name for d in dataset.text("held_out")] == ["v.jsonl:1", "v.jsonl:2"]
    doubled = [talk(i % 30) for i in range(60)]
    random.Random(0).shuffle(doubled)
    both = ChatData(path=write(tmp_path / "d.jsonl", doubled), held_out=0.2).prepare(tmp_path / "out", tokenizer)
    sides = [{d.text for d in both.text(s)} for s in ("train", "held_out")]
    assert sides[1]
    assert not sides[0] & sides[1]


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    root = tmp_path_factory.mktemp("code")
    for i in range(25):
        functions = [
            f'def f{i}_{j}(x):\n    """Return x times {i} plus {j}, as any number would."""\n    return x * {i} + {j}\n'
            for j in range(1 + i % 4)
        ]
        (root / f"m{i}.py").write_text(f"# {prose(i, 30)!r}\n" + "\n\n".join(functions))
    return root


def test_pairs_are_held_out_with_their_files(code, tmp_path):
    text = TextData(sources=str(code), held_out=0.2, tokenizer=TrainBPE(vocab=400)).prepare(tmp_path)
    chat = ChatData(pairs=str(code), held_out=0.2).prepare(tmp_path, text.tokenizer)
    assert chat.tokenizer.size == text.tokenizer.size  # the chat tokens were there; a template is new
    files = [{d.name for d in text.text(s)} for s in ("train", "held_out")]
    from_files = [{d.name.split(":")[0] for d in chat.text(s)} for s in ("train", "held_out")]
    assert from_files == files
    assert sum(chat.facts[s]["documents"] for s in ("train", "held_out")) == sum(1 + i % 4 for i in range(25))
    assert "return x * 7 + 1\n<|end|>" in "".join(rows(chat, "train") + rows(chat, "held_out"))


def test_pairs_of_one_file_are_divided_where_its_text_is(tmp_path):
    functions = [
        f'def f{j}(x):\n    """Return the number {j} times x, as it should be."""\n    y = x * {j}\n    return y\n'
        for j in range(200)
    ]
    (tmp_path / "one.py").write_text("\n".join(functions))
    data = {"held_out": 0.1}
    text = TextData(sources=str(tmp_path / "one.py"), tokenizer=TrainBPE(vocab=400), **data).prepare(tmp_path / "out")
    chat = ChatData(pairs=str(tmp_path / "one.py"), **data).prepare(tmp_path / "out", text.tokenizer)
    assert chat.facts["held_out"]["documents"] in (19, 20)
    assert chat.facts["train"]["documents"] in (179, 180)
    held_out = next(text.text("held_out")).text
    for d in chat.text("held_out"):
        assert f"def {d.name.split()[1]}(x)" in held_out


def test_a_tokenizer_without_chat_grows(tmp_path):
    bare = Tokenizer.train((prose(i, 100) for i in range(5)), 300, special=["<|endoftext|>"])
    config = ChatData(path=write(tmp_path / "c.jsonl", [talk(i) for i in range(30)]))
    dataset = config.prepare(tmp_path / "out", bare)
    assert dataset.tokenizer.size == bare.size + 4 == dataset.facts["vocab"]
    assert dataset.tokenizer.chat_template is not None
    assert config.prepare(tmp_path / "out", bare).tokenizer.digest == dataset.tokenizer.digest


def test_mistakes(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"needs path .* or pairs"):
        ChatData.from_dict({})
    with pytest.raises(UserError, match="needs the tokenizer of a model"):
        ChatData(path=write(tmp_path / "c.jsonl", [talk(1)])).prepare(tmp_path / "out")
    (tmp_path / "prose.txt").write_text(prose(1, 100))
    with pytest.raises(UserError, match=r"no conversation to learn from in .*prose\.txt"):
        ChatData(pairs=str(tmp_path / "prose.txt")).prepare(tmp_path / "out", tokenizer)
    with pytest.raises(UserError, match="does not exist"):
        ChatData(path=str(tmp_path / "none.jsonl")).prepare(tmp_path / "out", tokenizer)
    own = ChatData(path=str(tmp_path / "c.jsonl"), tokenizer=TrainBPE(vocab=300), held_out=0)
    assert own.prepare(tmp_path / "out").tokenizer.size > 256
