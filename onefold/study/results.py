"""results.json: what came of a run, beside its config.json and log.jsonl, for reports and comparisons.

All sections are optional; a reader leaves out what is not there.

    title      str: the run's name to people
    final      {"bits_per_byte", "loss", "perplexity", "parameters", "tokens", "steps", "seconds",
               "tokens_per_second", "mfu", "peak_memory" (bytes)}: numbers, and whatever else was measured
    baselines  [{"name", "bits_per_byte", "seconds", "note"}]: study.baselines.Baseline.to_dict()
    estimate   study.forecast.Forecast.to_dict()
    samples    [{"prompt", "text"} or {"messages": [{"role", "content"}]}, either with "title", "language" ("python",
               for highlighting) and "settings"]: `text` is what follows the prompt; of a message "name" is
               what is shown instead of its role
    pictures   study.pictures.picture_results(): what a model of pictures takes for what, its worst mistakes
    texts      study.texts.text_results(): how good a fine-tuned encoder is, and where it was wrong
    translations  study.translations.translation_results(): what a model of two texts wrote, and where it looked
    preferences  study.gain: how many answers pass a check before and after learning from preferences
    data       {"name", "hash", …}: plain values, and one {"documents", "bytes", "tokens"} for each split
    machine    study.machine.facts()
    stages     [{"name", "folder", "title"}]: the runs this one consists of, in order; folders relative to this file
    reproduce  [str]: the commands that give this run again
    notes      [str]: what a reader should know
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError
from onefold.core.files import atomic_write

RESULTS = "results.json"
VERSION = 1
SECTIONS = (
    *("title", "final", "baselines", "estimate", "samples", "pictures", "texts", "translations", "preferences"),
    *("data", "machine", "stages", "reproduce", "notes"),
)


def write_results(folder: Path, **sections: Any) -> Path:
    """Set some sections of RUN/results.json; those of earlier calls stay. Objects with `to_dict` are written as that.

    Numbers that are not finite become null. Raises ValueError for a section that the schema does not have.
    """
    if unknown := set(sections) - set(SECTIONS):
        raise ValueError(f"results.json has no section {', '.join(sorted(unknown))}; it has {', '.join(SECTIONS)}")
    path = Path(folder) / RESULTS
    merged = read_results(folder) | sections
    ordered = {"version": VERSION} | {name: plain(merged[name]) for name in SECTIONS if name in merged}
    atomic_write(path, json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
    return path


def read_results(folder: Path) -> dict[str, Any]:
    """The sections of RUN/results.json; empty when there is none. Raises UserError when it is damaged."""
    path = Path(folder) / RESULTS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): delete it, or run the evaluation again") from None
    if not isinstance(found, dict) or found.get("version", VERSION) != VERSION:
        raise UserError(f"{path} was written by another version of onefold: run the evaluation again with this one")
    return {name: found[name] for name in SECTIONS if name in found}


def plain(value: Any) -> Any:
    """`value` as JSON has it: mappings, lists, text, numbers, None."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
