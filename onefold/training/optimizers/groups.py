"""The one table of a model's parameters: a pattern of names, and what the optimizer does with those that fit it.

Each setting of a parameter comes from the first row that fits it and says something about that setting. A config's own
rows stand before the default ones. Fine-tuning with a slower trunk that starts to move late, say, is one row:

    {"pattern": "encoder.*", "lr": 0.1, "frozen_until": 500}
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from onefold.core.config import Config, Slot
from onefold.core.errors import UserError
from onefold.training.optimizers.schedule import Schedule

Rule = Literal["adamw", "muon", "sgd", "adafactor"]
Multiplier = Annotated[float, Field(ge=0)]


class Group(Config):
    """A row of the table. What it leaves None is said by a later row that fits."""

    pattern: str = "*"  # of the parameter's name, as in a shell: "*.norm*", "blocks.0.*"
    matrices: bool = False  # fits matrices and stacks of them only; vectors may be stacked, too
    rule: Rule | None = None
    lr: Multiplier | None = None  # times the config's
    decay: Multiplier | None = None  # times the config's
    adaptive_clip: Multiplier | None = None  # times the config's; 0: gradients stay as they are
    schedule: Annotated[Schedule, Slot()] | None = None  # of its own, instead of the run's
    frozen_until: Annotated[int, Field(ge=0)] | None = None  # how many updates the others get before the first of these

    def fits(self, name: str, vector: bool) -> bool:
        return fnmatchcase(name, self.pattern) and not (vector and self.matrices)


@dataclass(frozen=True)
class Settings:
    """What the table says about a parameter; those with equal settings make up a group of the optimizer."""

    rule: Rule
    lr: float
    decay: float
    adaptive_clip: float
    schedule: Schedule | None
    frozen_until: int


# A classifier's rows may grow as large as their classes need (arXiv 2102.06171, section 4.1).
DEFAULTS = (
    Group(pattern="classifier*", adaptive_clip=0.0),
    Group(adaptive_clip=1.0, frozen_until=0),
)
# Of a state space only C, which weighs states, is a matrix; what else is in its kernel is numbers for each channel.
VECTORS_DO_NOT_DECAY = (
    Group(pattern="*.kernel.[!C]*", decay=0.0),
    Group(matrices=True, decay=1.0),
    Group(rule="adamw", lr=1.0, decay=0.0),
)
MUON_IN_BLOCKS = (
    Group(pattern="*.kernel.*", rule="adamw"),
    Group(pattern="*blocks.*", matrices=True, rule="muon"),
)


def is_vector(parameter: Tensor, rows: tuple[int, ...] | None) -> bool:
    """rows: of each matrix that is packed in it; None: it is one; none: a stack of vectors, of experts' biases say."""
    return parameter.ndim < 2 or rows == ()


def settings(name: str, vector: bool, table: Iterable[Group]) -> Settings:
    """The settings of a parameter, which may be a `vector`: each from the first row that fits and says it.

    Errors: UserError when a vector is given to Muon.
    """
    rows = [row for row in (*table, *DEFAULTS) if row.fits(name, vector)]
    found = Settings(
        **{
            setting: next((value for row in rows if (value := getattr(row, setting)) is not None), None)
            for setting in Settings.__dataclass_fields__
        }
    )
    if found.rule == "muon" and vector:
        raise UserError(f"optimizer.groups: {name} is no matrix and cannot follow muon; add matrices=true to its row")
    return found


def layer_decay(model: nn.Module, name: str, decay: float | None) -> float:
    """decay^(how many layers lie above the parameter): what was learned first changes least (arXiv 2106.08254).

    Errors: UserError when the model does not say how deep its parameters lie.
    """
    if decay is None:
        return 1.0
    if not hasattr(model, "depth_of"):
        raise UserError(f"optimizer.layer_decay: {type(model).__name__} does not say how deep its parameters lie")
    return decay ** (model.depths - model.depth_of(name))


def check_frozen(groups: Iterable[dict]) -> None:
    """Raises UserError when nothing would move at first: a step without any gradient cannot be judged."""
    if first := min((group["frozen_until"] for group in groups), default=0):
        raise UserError(f"optimizer.groups: frozen_until holds every parameter for {first} updates; let some move at 0")
