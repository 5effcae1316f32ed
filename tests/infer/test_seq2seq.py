"""What encoder-decoders write: as transformers would have them, whatever stands beside a text in its batch."""

import asyncio
import json

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import onefold
from onefold.cli.main import app
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import ENCODER_TOKENS, T5_TOKENS, Tokenizer
from onefold.infer.generation.continuation import Continuation
from onefold.infer.generation.sampling import Sampling
from onefold.infer.seq2seq import Seq2SeqModel
from onefold.interop.artifact import save_artifact
from onefold.interop.loaded import Loaded
from onefold.models import seq2seq_families as families
from onefold.models.recurrent.seq2seq import RecurrentSeq2SeqConfig
from onefold.serve.engine import Job
from onefold.serve.queue import Queue
from tests.interop.published_seq2seq import CASES, published, saved
from tests.models.test_seq2seq import MODELS, SMALL, rough

SOURCES = [[5, 9, 2, 44, 17, 3, 8, 30, 12, 7], [11], [59, 2, 2, 41, 6], [9, 9, 9, 9, 20], [33, 4, 5, 21, 8, 13, 50]]
WRITTEN = 10


def written(model, sources, ends=None, **options):
    """Ids for each source, at once; `ends`: the ids that end a text, where they are not the model's."""
    sampling = Sampling(max_new_tokens=WRITTEN, **options)
    rows = model.begin_all(sources, sampling)
    for row in rows:
        row.ends = row.ends if ends is None else frozenset(ends)
    model.finish(rows, sampling)
    return [row.ids for row in rows]


def transformers_writes(theirs, source, first, end, **options):
    """Each text alone, without the tokens that begin and end what is written."""
    theirs.generation_config.forced_eos_token_id = None  # at the longest length we stop where we are
    before = 1 + (first is not None)
    ids = theirs.generate(
        torch.tensor([source]),
        attention_mask=torch.ones(1, len(source)),
        max_new_tokens=WRITTEN + before - 1,
        eos_token_id=end,
        do_sample=False,
        use_cache=False,  # theirs cannot keep other numbers of layers on the two sides
        **options,
    )[0].tolist()[before:]
    return ids[: ids.index(end)] if end in ids else ids[:WRITTEN]


@pytest.fixture(params=CASES)
def both(request, tmp_path):
    return saved(request.param, tmp_path, std=0.4), onefold.load(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 2.0},
        {"beams": 4, "length_penalty": 0.6},
        pytest.param({"beams": 4, "length_penalty": 0.0}, marks=pytest.mark.slow),
        pytest.param({"beams": 4, "length_penalty": 1.5}, marks=pytest.mark.slow),
    ],
    ids=["greedy", "beams 0.6", "beams", "beams 1.5"],
)
def test_texts_are_those_of_transformers(both, options):
    theirs, ours = both
    assert isinstance(ours, Seq2SeqModel)
    sources = SOURCES[:3]
    free = written(ours, sources, (), **options)
    assert len({tuple(ids) for ids in free}) > 1  # a model that always says the same would prove nothing
    given = {"num_beams" if name == "beams" else name: value for name, value in options.items()}
    given |= {"early_stopping": "never"} if "beams" in options else {}
    end = free[0][3]
    want = [transformers_writes(theirs, source, ours.config.first, end, **given) for source in sources]
    assert written(ours, sources, [end], **options) == want


BARRED = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 6},
    {"no_repeat_ngram_size": 2, "beams": 4},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 7, "beams": 3, "length_penalty": 2.0},
]


@pytest.mark.parametrize("options", BARRED)
@pytest.mark.parametrize("case", ["bart", "bart-scaled"])
def test_what_is_barred_is_what_transformers_bars(case, options, tmp_path):
    theirs, ours = saved(case, tmp_path, std=0.4), onefold.load(tmp_path)
    plain = {name: value for name, value in options.items() if name in ("beams", "length_penalty")}
    free = written(ours, SOURCES, (), **plain)
    end = free[0][1]
    before = written(ours, SOURCES, [end], **plain)
    given = {"num_beams" if name == "beams" else name: value for name, value in options.items()}
    given |= {"early_stopping": "never"} if "beams" in options else {}
    if "min_new_tokens" in options and ours.config.first is not None:
        given["min_new_tokens"] += 1  # theirs count the token that every text begins with
    want = [transformers_writes(theirs, source, ours.config.first, end, **given) for source in SOURCES]
    found = written(ours, SOURCES, [end], **options)
    assert found == want
    assert found != before  # something was barred


def test_a_published_folder_says_how_it_wants_to_write(tmp_path):
    theirs = published("bart", std=0.4)
    theirs.generation_config.update(
        num_beams=3, length_penalty=2.0, no_repeat_ngram_size=2, min_length=6, max_length=12, eos_token_id=7
    )
    theirs.generation_config.forced_bos_token_id, theirs.generation_config.forced_eos_token_id = 0, None
    theirs.save_pretrained(tmp_path)
    ours = onefold.load(tmp_path)
    said = ours.sampling({})
    assert (said.beams, said.no_repeat_ngram_size, said.min_new_tokens, said.max_new_tokens) == (3, 2, 4, 10)
    rows = ours.begin_all(SOURCES, said)
    ours.finish(rows, said)
    for row, source in zip(rows, SOURCES):
        ids = theirs.generate(torch.tensor([source]), use_cache=False, early_stopping="never")[0].tolist()[2:]
        assert row.ids == (ids[: ids.index(7)] if 7 in ids else ids)
    assert ours.sampling({"beams": 1, "max_new_tokens": 5}).but({"min_new_tokens": 0}).max_new_tokens == 5
    assert ours.sampling({"temperature": 0.8}).beams == 1  # a draw is asked for

    own, settings = (tmp_path / f"{name}.json" for name in ("generation_config", "config"))
    settings.write_text(json.dumps(json.loads(settings.read_text()) | json.loads(own.read_text())))
    own.unlink()  # as older folders have it
    assert onefold.load(tmp_path).sampling({}) == said


def model(name="bart", tokenizer=None, **changes):
    config = MODELS[name].but(changes)
    return Seq2SeqModel(Loaded(config, rough(config), tokenizer, {"generation": {"eos_token_id": 7}}))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("one stack, sines", "one stack, window")])
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 2.0},
        {"temperature": 1.0, "top_p": 0.9, "seed": 3},
        {"beams": 3, "length_norm": "gnmt", "length_penalty": 0.6},
        {"temperature": 1.0, "seed": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    ],
    ids=["greedy", "sampled", "beams", "sampled, barred", "beams, barred"],
)
def test_a_batch_of_ragged_texts_equals_each_alone(name, options):
    writer = model(name, **({"start": 0} if MODELS[name].start is None else {}))
    free = written(writer, SOURCES, (), **options)
    ends = {free[0][2], free[2][5]}
    together = written(writer, SOURCES, ends, **options)
    assert together == [written(writer, [source], ends, **options)[0] for source in SOURCES]


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "one stack, relative"])
def test_what_is_written_is_what_the_whole_model_says(name):
    writer = model(name)
    for source, ids in zip(SOURCES, written(writer, SOURCES)):
        said = [writer.config.start, *ids]
        logits = writer.network(torch.tensor([source]), torch.tensor([said]))
        assert logits[0].argmax(-1)[: len(ids)].tolist() == ids


def test_models_of_lstms_write_by_the_same_loop_and_search():
    config = RecurrentSeq2SeqConfig(vocab=61, width=24, start=0)
    torch.manual_seed(0)
    network = config.build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    writer = Seq2SeqModel(Loaded(config, network, None, {"generation": {"eos_token_id": 7}}))
    for options in ({}, {"beams": 3}):
        together = written(writer, SOURCES, **options)
        assert together == [written(writer, [source], **options)[0] for source in SOURCES]


TEXTS = ["The cat sat on the mat.", "A dog!", "Rain falls, and the river rises slowly."] * 4


@pytest.mark.parametrize(("name", "special"), [("bart", ENCODER_TOKENS), ("t5", T5_TOKENS)])
def test_texts_in_and_texts_out_also_from_our_own_folder(name, special, tmp_path):
    tokenizer = Tokenizer.train(TEXTS, 300, special)
    config = getattr(families, name)().but(SMALL | {"vocab": tokenizer.size, "start": None, "first": None})
    save_artifact(tmp_path / name, rough(config), config, tokenizer)
    writer = onefold.load(tmp_path / name)
    assert writer.begin("A dog!", Sampling()).source == writer.ids("A dog!")
    assert writer.ids("A dog!")[-1] == tokenizer.end
    assert writer.begin("A dog!", Sampling()).prompt == [tokenizer.decoder_start]
    texts = writer.generate(TEXTS[:3], max_new_tokens=8)
    assert texts == [writer.generate(text, max_new_tokens=8) for text in TEXTS[:3]]
    assert "".join(writer.stream(TEXTS[2], max_new_tokens=8)) == texts[2]
    assert not any(name in text for text in texts for name in special)
    _asked_in_other_ways(tmp_path / name, texts)


def _asked_in_other_ways(path, texts):
    """On the command line, in a file, and over the API."""
    said = CliRunner().invoke(app, ["generate", str(path), TEXTS[2], "max_new_tokens=8"])
    assert said.stdout == texts[2] + "\n"
    prompts = path.with_name("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS[:3]))
    CliRunner().invoke(app, ["generate", str(prompts.with_name(path.name)), str(prompts), "--out", str(path / "out")])
    answers = [json.loads(line)["answer"] for line in (path / "out").read_text().splitlines()]
    assert [answer[: len(text)] for answer, text in zip(answers, texts)] == texts

    queue = Queue(onefold.load(path), "small")

    async def ask():
        answer = await queue.submit(Job(prompt=TEXTS[2], max_tokens=8, sampling={"temperature": 0.0}))
        return answer.prompt_tokens, "".join([piece.text async for piece in answer])

    assert asyncio.run(ask()) == (len(onefold.load(path).ids(TEXTS[2])) + 1, texts[2])
    queue.close()


def test_long_texts_lose_their_ends_where_positions_are_learned(capsys):
    writer = model("bart")
    long = [*range(3, 50), 2]
    row = writer.begin(long, Sampling(max_new_tokens=100))
    assert row.source == [*long[:37], 2]
    assert "loses its end: the model reads 38" in capsys.readouterr().err
    assert row.budget == 37  # of 38 positions the first two are </s> and <s>
    assert model("t5").begin(long, Sampling(max_new_tokens=100)).budget == 100


def test_ids_that_are_not_allowed_are_never_written():
    config = MODELS["marian"]
    network = rough(config)
    free = Seq2SeqModel(Loaded(config, network, None, {}))
    common = written(free, SOURCES, temperature=1.0)[0][0]
    card = {"generation": {"bad_words_ids": [[common], [1, 2]]}}
    banned = Seq2SeqModel(Loaded(config, network, None, card))
    for options in ({}, {"temperature": 1.0}, {"beams": 2}):
        assert all(common not in ids for ids in written(banned, SOURCES, **options))


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="no tokens"):
        model().begin([], Sampling())
    with pytest.raises(UserError, match="between 0 and 60"):
        model().begin([99], Sampling())


def test_a_gap_in_a_text_is_one_token():
    trained = Tokenizer.train(["the green river runs"] * 3, 280, T5_TOKENS)
    tokenizer = trained.add_special(["<extra_id_1>", "<extra_id_0>"])
    config = MODELS["t5"].but({"vocab": tokenizer.size})
    model = Seq2SeqModel(Loaded(config, rough(config), tokenizer, {}))
    ids = model.ids("the <extra_id_0> runs")
    assert ids.count(tokenizer.sentinels[0]) == 1
    assert ids[-1] == tokenizer.end
    assert tokenizer.end not in model.ids("the </s> runs")[:-1]


def pieces() -> Backend:
    """A tokenizer as T5's, whose decoder drops the blank that a text begins with."""
    words = ["▁the", "▁green", "▁river", "▁runs", "▁", "s", "r"]
    backend = Backend(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((w, -1.0) for w in words)], 2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens([AddedToken(name, special=True) for name in T5_TOKENS])
    return backend


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_gaps_are_told_apart_in_what_is_written(kind):
    trained = (
        Tokenizer(pieces(), eos="</s>", pad="<pad>")
        if kind == "pieces"
        else Tokenizer.train(["the green river runs"] * 3, 280, T5_TOKENS)
    )
    tokenizer = trained.add_special([f"<extra_id_{i}>" for i in range(3)])
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    first, second, third = tokenizer.sentinels
    said = [first, *tokenizer.encode("the river"), second, *tokenizer.encode("runs"), third]
    row = Continuation([0], 100, {tokenizer.end}, (), tokenizer.stream(gaps=True))
    row.write([tokenizer.pad, *said], "stop")
    assert row.text == theirs.decode(said, skip_special_tokens=False)
    assert row.text.replace(" ", "") == "<extra_id_0>theriver<extra_id_1>runs<extra_id_2>"
    assert tokenizer.decode(said).replace(" ", "") == "theriverruns"

    config = MODELS["t5"].but({"vocab": tokenizer.size})
    model = Seq2SeqModel(Loaded(config, rough(config), tokenizer, {}))
    row = model.begin("the", Sampling())
    row.write(said, "stop")
    assert row.text == theirs.decode(said, skip_special_tokens=False)
