"""The mean of several checkpoints' weights: what the first Transformer was judged by (arXiv 1706.03762, section 6.1).

Checkpoints of the end of one run lie around the same minimum, and their mean is nearer to it than each of them. Unlike
an optimizer's `ema` it is taken afterwards, of as many as were kept (trainer.keep, trainer.checkpoint_every).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from onefold.core.errors import UserError
from onefold.core.files import atomic_folder
from onefold.core.progress import say
from onefold.interop.artifact import FILE, read_card, read_model_config, write_artifact
from onefold.interop.open import CHECKPOINTS
from onefold.interop.tensors import SafetensorFiles, check_written, find_safetensors
from onefold.interop.tokenizers.processors import load_processor
from onefold.training.state import Checkpoints

AVERAGED = "averaged"  # where in a run's folder the mean goes


def average_checkpoints(models: Sequence[str | Path], last: int = 5, out: str | Path | None = None) -> Path:
    """Write the mean of these models' weights as an artifact, and return its folder.

    models: a run stands for its `last` newest checkpoints, any other folder of ours for itself; all must be models of
    one shape. out: None, for a single run: its subfolder "averaged". Its card says what it is the mean of, and keeps
    the newest one's. Memory: one model, in fp32. Raises UserError naming the folder that does not fit.
    """
    given = [Path(model).expanduser() for model in models]
    if out is None:
        if len(given) != 1 or not (given[0] / CHECKPOINTS).is_dir():
            raise UserError("say where the average goes with --out; only that of a single run has a place of its own")
        out = given[0] / AVERAGED
    folders = [folder for path in given for folder in _folders(path, last)]
    cards = [read_card(folder) for folder in folders]
    configs = [read_model_config(card, folder / FILE) for folder, card in zip(folders, cards)]
    for folder, config in zip(folders, configs):
        if config != configs[-1]:
            raise UserError(f"{folder} is a model of another shape than {folders[-1]}: only equal ones can be averaged")
    adapted = [{part: card[part] for part in ("adapt", "base") if part in card} for card in cards]
    for folder, told in zip(folders, adapted):
        if told != adapted[-1]:
            raise UserError(f"{folder} and {folders[-1]} do not adapt the same model alike: their mean means nothing")
    for folder in folders:
        check_written(folder, every=True)
    weights = _mean([SafetensorFiles(find_safetensors(folder) or []) for folder in folders], folders)
    card = {**cards[-1]["card"], "average_of": [str(folder) for folder in folders]}
    with atomic_folder(Path(out)) as temporary:
        write_artifact(temporary, configs[-1], weights, load_processor(folders[-1]), card, more=adapted[-1])
    say(f"the mean of {len(folders)} checkpoints ({', '.join(folder.name for folder in folders)}): {out}")
    return Path(out)


def _folders(path: Path, last: int) -> list[Path]:
    """A run's newest checkpoints, oldest first; else the folder itself."""
    if not (path / CHECKPOINTS).is_dir():
        return [path]
    checkpoints = Checkpoints(path / CHECKPOINTS)
    steps = checkpoints.steps()[-last:]
    if len(steps) < last:
        told = f"{len(steps)} checkpoint{'s' * (len(steps) != 1)}, not {last}"
        say(f"{path} has {told}: averaging those (keep more with trainer.keep={last})")
    if not steps:
        raise UserError(f"{path / CHECKPOINTS} is empty: the run has not saved anything yet")
    return [checkpoints.folder / str(step) for step in steps]


def _mean(sources: Sequence[SafetensorFiles], folders: Sequence[Path]) -> dict[str, Tensor]:
    """Of each tensor by name; counters and the like, which have no mean, are the newest one's."""
    found: dict[str, Tensor] = {}
    for source, folder in zip(sources, folders):
        if unlike := sorted({*source} ^ {*sources[-1]}):
            raise UserError(f"{folder} and {folders[-1]} have different weights: {unlike[0]} is in one of them only")
    for name in sources[-1]:
        newest = sources[-1][name]
        if newest.is_floating_point():
            total = torch.zeros_like(newest, dtype=torch.float64)
            for source in sources:
                total += source[name]
            newest = (total / len(sources)).to(newest.dtype)
        found[name] = newest
    return found
