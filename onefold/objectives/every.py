"""All that a run may minimise, and what each of them learns from."""

from typing import get_args

from onefold.core.batch import Batch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.objectives.classification import Classification
from onefold.objectives.contrastive import InfoNCE
from onefold.objectives.distillation import Distillation
from onefold.objectives.every_layer import EveryLayer
from onefold.objectives.fine_tuning import Regression, SpanSelection, TokenClassification
from onefold.objectives.language import MaskedAndNext, NextToken
from onefold.objectives.policy import GRPO, Imitation
from onefold.objectives.ppo import PPO
from onefold.objectives.preference import KTO, Preference
from onefold.objectives.reconstruction import Reconstruction
from onefold.objectives.reward import Reward
from onefold.objectives.transfer import BothDirections, ClassificationAndNext, RegularizedNextToken

AnyObjective = (
    NextToken
    | EveryLayer
    | Distillation
    | MaskedAndNext
    | BothDirections
    | RegularizedNextToken
    | Classification
    | ClassificationAndNext
    | TokenClassification
    | SpanSelection
    | Regression
    | InfoNCE
    | Reconstruction
    | Preference
    | KTO
    | Reward
    | GRPO
    | PPO
    | Imitation
)


def check_reads(objective: AnyObjective, batch: type[Batch], data: Config) -> None:
    """Raises UserError, naming those that do, when an objective does not learn from the batches of these data."""
    if not _reads(objective, batch, data):
        fitting = [kind.model_fields["kind"].default for kind in get_args(AnyObjective) if _reads(kind, batch, data)]
        named = f"objective {objective.kind} does not learn from {data.kind} data"
        raise UserError(f"{named}: set objective.kind to {' or '.join(fitting)}")


def _reads(objective: AnyObjective | type, batch: type[Batch], data: Config) -> bool:
    task = getattr(objective, "task", None)
    reads = getattr(objective, "reads", Batch)  # a class of the user's own need not say
    return issubclass(batch, reads) and task in (None, getattr(data, "task", task))
