"""The reference that preferences are compared with: a model that is asked once what it says of every row.

It is `frozen.reference`, or else the very model that the run begins with, as it is after surgery: so a policy and its
reference agree to the last bit at first, and no second model is ever in memory. What it said is kept beside the records
under a hash of its weights; the run's checkpoints name that hash, so that a resumed run asks nobody.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.every import Prepared
from onefold.data.text.chat.preferences import PreferenceDataset
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.adapted import fingerprint
from onefold.interop.artifact import read_card
from onefold.interop.open import open_model
from onefold.interop.table import own_weights
from onefold.training.processes.parallel import reshard

if TYPE_CHECKING:
    from onefold.training.run import Run

NAME = "reference"  # in Run.frozen and in cards
CONSULTED = "consulted"  # in cards: the hashes of models that are asked all along, by name
ROWS = 16  # asked at once, where the run does not say how many fit


def asked(run: "Run", dataset: PreferenceDataset, good: Path | None) -> str | None:
    """The hash of the reference that has been asked already, as the checkpoint `good` names it; None: none has been.

    Errors: UserError when there is nobody to ask.
    """
    if not run.start and NAME not in run.frozen:
        raise UserError(
            f"objective {run.objective.kind} compares with a reference: begin with a model (start=…) or name one "
            "(frozen.reference=…); orpo and simpo need none"
        )
    known = read_card(good)["card"].get(NAME) if good else None
    return known if known and dataset.know(known) else None


@torch.no_grad()
def ask(run: "Run", dataset: PreferenceDataset, objective: Any, model: nn.Module, device: torch.device) -> str:
    """Have all rows of `dataset` judged, unless they are already; the hash of who did it.

    model: as training begins with it, in its place. Errors: UserError when a reference reads other tokens.
    """
    if NAME in run.frozen:
        model = opened(run, NAME, dataset, device)
    reference = hash_of(model)
    if dataset.know(reference):
        return reference
    model.eval()
    rows = run.trainer.micro_batch or max(1, min(ROWS, run.trainer.batch))
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=run.trainer.bf16(device)),
        torch.compiler.set_stance("force_eager"),
    ):
        dataset.ask(reference, lambda batch: objective.refer(model, batch.to(device)), rows)
    reshard(model)
    return reference


def consulted(run: "Run", dataset: Prepared, device: torch.device) -> dict[str, nn.Module]:
    """The models that an objective asks about every batch, by name: all of `run.frozen` but the reference.

    Errors: UserError when one cannot read these batches.
    """
    return {name: opened(run, name, dataset, device) for name in run.frozen if name != NAME}


def recognised(
    run: "Run", good: Path | None, models: Mapping[str, nn.Module], computed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The hashes of models that are asked all along, by name. computed: see `hash_of`.

    Errors: UserError when one is not what it was at the checkpoint `good`.
    """
    known = read_card(good)["card"].get(CONSULTED, {}) if good else {}
    found = {name: hash_of(model, computed) for name, model in models.items()}
    for name, now in found.items():
        if known.get(name, now) not in (now, hash_of(models[name])):  # which all models went by once
            given = f"frozen.{name}={run.frozen[name]}" if name in run.frozen else f"start={run.start}"
            raise UserError(f"{given} has changed since {run.out} was begun: put it back, or give another out=")
    return found


def opened(run: "Run", name: str, dataset: Prepared, device: torch.device) -> nn.Module:
    """A model of `run.frozen`, which reads the same tokens as the one that learns."""
    loaded, given = open_model(run.frozen[name], device), f"frozen.{name}={run.frozen[name]}"
    if loaded.tokenizer and isinstance(dataset.processor, Tokenizer):
        known = loaded.tokenizer.vocabulary
        if any(known.get(token) != i for token, i in dataset.processor.vocabulary.items()):
            raise UserError(f"{given} has another tokenizer than the model that learns")
    try:
        dataset.fit(loaded.config, grow=False)
    except UserError as error:
        raise UserError(f"{given} cannot read these data: {error}") from None
    return loaded.model.requires_grad_(False)


def hash_of(model: nn.Module, computed: Mapping[str, str] | None = None) -> str:
    """Of a model's config and weights, also when these are spread over processes.

    computed: by what weights go that no file has as they are, since another processor may round them otherwise
    (Loaded.computed).
    """
    config, origins = getattr(model, "config", None), computed or {}
    prints: list[Any] = [config.to_dict() if isinstance(config, Config) else None]
    for name, weight in own_weights(model).items():
        origin = origins.get(name.replace(".base.", "."))
        prints.append((name, origin or fingerprint(weight.full_tensor() if isinstance(weight, DTensor) else weight)))
    return blake2b(json.dumps(prints).encode(), digest_size=8).hexdigest()
