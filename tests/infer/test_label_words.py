"""Classes by words: what is scored is what the whole model says, whatever is batched, cached or cut."""

import pytest
import torch
import torch.nn.functional as F

from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.label_words import LabelWordsConfig, WordScorer, accuracy, label_loss
from onefold.infer.model import Model
from onefold.interop.loaded import Loaded
from tests.infer.small_models import config, decoder

TEXTS = ["red is warm and blue is cold", "a stone, a tree, a river", "great", "bad weather is warm or cold"]
TOKENIZER = Tokenizer.train([" ".join(TEXTS)] * 3, vocab=300)
ASKED = LabelWordsConfig(template="{text} is", words={"hot": "warm", "icy": "cold", "none": "stone"})


def scorer(family: str = "llama2", **changes) -> WordScorer:
    made = config(family, vocab=TOKENIZER.size, **changes)
    return WordScorer(Model(Loaded(made, decoder(made), TOKENIZER)), ASKED)


def in_full(scorer: WordScorer, ids: list[int], vectors: torch.Tensor) -> torch.Tensor:
    """By the whole model at once, prompt included, and all of its head."""
    net = scorer.network
    whole = torch.cat((vectors, net.embed.token(torch.tensor(ids))))
    handle = net.embed.token.register_forward_hook(lambda *_: whole[None])
    logits = net(torch.zeros(1, len(whole), dtype=torch.long))[0, -1]
    handle.remove()
    return logits[scorer.words].log_softmax(0).detach()


@pytest.mark.parametrize("family", ["llama2", "gpt2", "pythia", "mistral"])
def test_scores_behind_many_prompts_are_those_of_each_alone(family, monkeypatch):
    monkeypatch.setattr("onefold.infer.label_words.TOGETHER", 60)  # several parts, of texts and of prompts
    asked = scorer(family)
    rows = asked.rows(TEXTS)
    prompts = torch.randn(5, 4, asked.network.config.width)
    expected = torch.stack([torch.stack([in_full(asked, ids, p) for ids in rows]) for p in prompts])
    torch.testing.assert_close(asked.prompted(prompts, rows), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        asked.scores(rows), torch.stack([in_full(asked, ids, prompts[0, :0]) for ids in rows]), atol=1e-4, rtol=0
    )


def test_words_before_a_text_are_read_with_it():
    asked = scorer()
    (first, tokens), (second, _) = asked.ask(["", "warm "], TEXTS)
    torch.testing.assert_close(first, asked.scores(asked.rows(TEXTS)))
    torch.testing.assert_close(second, asked.scores([TOKENIZER.prompt(f"warm {text} is") for text in TEXTS]))
    assert tokens == sum(map(len, asked.rows(TEXTS)))
    assert not torch.allclose(first, second)
    assert [len(found) for found in asked.best(TEXTS, top=2)] == [2] * 4


def test_long_texts_lose_their_end_and_never_the_template():
    asked, long = scorer(), "warm and cold " * 100
    for room in (0, 30):
        (ids,) = asked.rows([long], before="cold ", room=room)
        assert 0 <= asked.context - room - len(ids) < 4
        said = TOKENIZER.decode(ids)
        assert said.startswith("cold warm and")
        assert said.endswith(" is")
    with pytest.raises(UserError, match="leave no room"):
        asked.rows(["a"], room=asked.context)


def test_words_must_be_told_apart_by_their_first_token():
    assert ASKED.tokens(TOKENIZER) == [TOKENIZER.encode(f" {word}")[0] for word in ASKED.words.values()]
    with pytest.raises(UserError, match="'warm' and 'warmth' begin with the same token"):
        ASKED.but({"words": {"mild": "warmth"}}).tokens(TOKENIZER)
    with pytest.raises(UserError, match=r"\{text\} once"):
        ASKED.but({"template": "It is"})


def test_a_blank_at_the_end_of_a_template_is_the_one_before_the_word():
    for template in ("{text} is", "{text}"):
        plain, blank = (ASKED.but({"template": template + end}) for end in ("", " "))
        assert blank.put("it") == plain.put("it")
        assert blank.following() == plain.following()
        assert blank.tokens(TOKENIZER) == plain.tokens(TOKENIZER)


def test_losses_are_those_of_the_formulas():
    scores, labels = torch.randn(3, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    for one, loss in zip(scores, label_loss(scores, labels, "cross_entropy")):
        torch.testing.assert_close(loss, F.cross_entropy(one, labels))
    hinge = label_loss(scores, labels, "hinge", margin=2.0)
    for one, loss in zip(scores, hinge):
        terms = [max(0.0, 2 + one[i, j] - one[i, y]) for i, y in enumerate(labels.tolist()) for j in range(4) if j != y]
        torch.testing.assert_close(loss, torch.tensor(terms).sum() / 6)
    torch.testing.assert_close(label_loss(scores - 5, labels, "hinge"), hinge)  # logits or log-probabilities
    assert accuracy(F.one_hot(labels, 4).float(), labels) == 1
