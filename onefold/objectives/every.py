"""All that a run may minimise."""

from onefold.objectives.classification import Classification
from onefold.objectives.contrastive import InfoNCE
from onefold.objectives.fine_tuning import Regression, SpanSelection, TokenClassification
from onefold.objectives.language import MaskedAndNext, NextToken
from onefold.objectives.reconstruction import Reconstruction
from onefold.objectives.transfer import BothDirections, ClassificationAndNext

AnyObjective = (
    NextToken
    | MaskedAndNext
    | BothDirections
    | Classification
    | ClassificationAndNext
    | TokenClassification
    | SpanSelection
    | Regression
    | InfoNCE
    | Reconstruction
)
