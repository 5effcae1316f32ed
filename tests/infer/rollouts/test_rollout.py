"""Answers that a policy writes in a phase."""

import pytest
import torch

from onefold.adapt.lora import LoRAConfig
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.infer.generation.sampling import Sampling
from onefold.infer.rollouts import rollout
from onefold.infer.rollouts.rollout import Policy, Prompt
from tests.adapt.test_lora import rough
from tests.infer.small_models import config, decoder


def test_an_adapter_is_a_part_of_the_weights_while_they_write(monkeypatch):
    """What was written is the same, and so are the weights afterwards, to the last bit; also where it is broken off."""
    tokenizer = Tokenizer.train(["a b"], vocab=300)
    model = decoder(config("llama2", vocab=tokenizer.size))
    LoRAConfig(rank=2, dora=True).apply(model)
    rough(model).train()
    policy, before = Policy(model, None, None, torch.device("cpu")), [p.clone() for p in model.parameters()]
    merged, generate, limit = [], rollout.generate, 1000

    def write(tokens):
        prompts, seeds = [Prompt([5, 6], "a", ""), Prompt([7], "b", "")], [(0,), (1,)]
        rows = policy.write(prompts, Sampling(temperature=1.0, max_new_tokens=tokens), 64, tokenizer, seeds)
        return [row.ids for row in rows]

    def watched(*given):
        for step, _ in enumerate(generate(*given)):
            merged.append(model.switch.merged)
            if step == limit:
                raise KeyboardInterrupt
            yield

    monkeypatch.setattr(rollout, "generate", watched)
    few = write(8)  # too few for it to pay
    assert not any(merged)
    merged.clear()
    assert [ids[:8] for ids in write(20)] == few
    limit = 3
    with pytest.raises(KeyboardInterrupt):
        write(20)
    assert all(merged)
    assert not model.switch.merged
    assert all(torch.equal(p, then) for p, then in zip(model.parameters(), before, strict=True))
