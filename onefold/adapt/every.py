"""All that may be done to a model before it is trained further.

An adapt config has `apply(model)`: surgery in place, when the weights to begin with are there. It freezes what it does
not train; what it adds and trains are parameters. Buffers that it adds are made anew from those weights whenever the
run is opened, so they are not persistent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import nn

from onefold.adapt.lora import LoRAConfig
from onefold.adapt.prompts import PrefixTuningConfig, PromptTuningConfig
from onefold.adapt.quantize import QuantizeConfig
from onefold.adapt.surgery import switch_of
from onefold.core.config import Config, Slot
from onefold.core.errors import UserError

AnyAdapt = LoRAConfig | PromptTuningConfig | PrefixTuningConfig | QuantizeConfig
# "lora" or a single step stands for a list of one, which is what one writes on a command line.
Steps = Annotated[
    tuple[Annotated[AnyAdapt, Slot()], ...],
    BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,)),
]


class _Steps(Config):
    adapt: Steps


def adapt(model: nn.Module, steps: Sequence[AnyAdapt]) -> nn.Module:
    """The same model, each of the steps applied to it in this order."""
    for step in steps:
        step.apply(model)
        if not is_adapter(step):
            switch_of(model).steps.append(step)
    return model


def is_adapter(step: AnyAdapt) -> bool:
    """Whether a step adds what can be switched: several of those fit one model, by different names."""
    return not isinstance(step, QuantizeConfig)


def read_steps(told: Any, where: Path | str) -> tuple[AnyAdapt, ...]:
    """The steps as a file has them. No code is imported for it."""
    try:
        return _Steps.from_dict({"adapt": told or []}).adapt
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
