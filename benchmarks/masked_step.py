"""One step of masked-language-model training against `transformers`' RoBERTa: same shapes, same batches, fp32.

    python benchmarks/masked_step.py                      # both shapes, eager
    python benchmarks/masked_step.py --compiled           # ours compiled, too
    python benchmarks/masked_step.py --rounds 9 --threads 1

A step is forward, loss, backward, clipping and update by torch's fused AdamW. Of every row 15% are hidden. Ratios above
1 mean that Onefold is faster.
"""

from collections.abc import Callable

import torch
import transformers
from race import begin, parser, race
from transformers import RobertaConfig, RobertaForMaskedLM

from onefold.core.batch import TokenBatch
from onefold.models import encoder_families as families
from onefold.models.encoder import EncoderConfig
from onefold.models.transformer import count_parameters
from onefold.objectives.language import NextToken

CONTEXT, ROWS, HIDDEN, IGNORED = 128, 16, 0.15, -100
SHAPES = {
    "1M": {"vocab": 2048, "width": 128, "depth": 4, "heads": 4},
    "9M": {"vocab": 8192, "width": 320, "depth": 5, "heads": 5},
}


def ours(vocab: int, width: int, depth: int, heads: int) -> EncoderConfig:
    attention = {"heads": heads, "dropout": 0.0}
    return families.roberta().but(
        {
            **{"vocab": vocab, "width": width, "depth": depth, "context": CONTEXT, "dropout": 0.0},
            "embed": {"dropout": 0.0, "position": {"context": CONTEXT}},
            "block": {"dropout": 0.0, "mixer": attention, "ffn": {"width": 4 * width}},
        }
    )


def theirs(vocab: int, width: int, depth: int, heads: int) -> RobertaForMaskedLM:
    shape = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width)
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocab,
            max_position_embeddings=CONTEXT + 2,
            type_vocab_size=1,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
            **shape,
        )
    )


def batches(vocab: int, count: int = 4) -> list[TokenBatch]:
    """As the loader makes them: `asked` are the columns that hold all hidden tokens of a row."""
    found = []
    for _ in range(count):
        tokens = torch.randint(4, vocab, (ROWS, CONTEXT))
        weights = (torch.rand(ROWS, CONTEXT) < HIDDEN).float()
        most = -(-int(weights.sum(1).max()) // 16) * 16
        asked = weights.argsort(dim=1, descending=True, stable=True)[:, :most]
        hidden = tokens.masked_fill(weights > 0, 4)
        found.append(TokenBatch(tokens=hidden, targets=tokens, weights=weights, asked=asked))
    return found


def stepper(model: torch.nn.Module, loss, fed: list[TokenBatch], clock: Callable[[], float]):
    """A function that takes a step on each batch and returns the seconds of one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        began = clock()
        for batch in fed:
            loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return (clock() - began) / len(fed)

    run()  # warm-up: allocations, compilation
    return run


def contenders(shape: dict[str, int], compiled: bool, clock: Callable[[], float]) -> dict:
    fed, reference = batches(shape["vocab"]), theirs(**shape)

    def their_loss(batch: TokenBatch) -> torch.Tensor:
        return reference(batch.tokens, labels=batch.targets.masked_fill(batch.weights == 0, IGNORED)).loss

    found = {"transformers": stepper(reference, their_loss, fed, clock)}
    for name in ("onefold", "onefold, compiled")[: 1 + compiled]:
        model, objective = ours(**shape).build(), NextToken().build()
        objective = torch.compile(objective) if "compiled" in name else objective

        def our_loss(batch: TokenBatch, model=model, objective=objective) -> torch.Tensor:
            term = objective(model, batch, 0).terms["ce"]
            return term.sum / term.count

        found[name] = stepper(model, our_loss, fed, clock)
    return found


def main() -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--compiled", action="store_true")
    options = begin(made)
    transformers.logging.set_verbosity_error()
    for shape in SHAPES.values():
        print(f"\n{count_parameters(ours(**shape)):,} parameters, {ROWS} x {CONTEXT} tokens a step")
        race(contenders(shape, options.compiled, options.clock), options.rounds, "transformers")


if __name__ == "__main__":
    main()
