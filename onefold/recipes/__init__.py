"""The landmark systems as short recipes, one file each; a recipe is known by its file's name, in whichever room it is.

A recipe module has
    recipe(…) -> Run      the published setting
    tiny(…) -> Run        the same idea in minutes on two cores
    check(report)         what must hold if it is implemented right, and what it showed
Both functions take a few typed parameters of their own (`data=`, `size=`); dotted paths edit the Run they return.
Those of word vectors return a WordRun, which is trained by a loop of its own and lies in a folder of the same kind;
that of black-box tuning returns a TuneConfig, which is a search.
"""

import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from onefold.core.errors import UserError

if TYPE_CHECKING:
    from onefold.study.tuning.tune import TuneConfig, TuneResult
    from onefold.training.run import Result, Run
    from onefold.training.words.run import WordResult, WordRun


def names() -> list[str]:
    """All recipes, by file name; nothing is imported."""
    return sorted(_modules())


def find(name: str) -> ModuleType:
    modules = _modules()
    if name not in modules:
        from onefold.core.config import unknown_name

        raise UserError(unknown_name(name, sorted(modules)).replace("setting", "recipe"))
    return import_module(modules[name])


def _modules() -> dict[str, str]:
    here = Path(__file__).parent
    files = (f.relative_to(here).with_suffix("") for f in here.rglob("*.py") if not f.stem.startswith("_"))
    return {f.name: ".".join(("onefold.recipes", *f.parts)) for f in files}


def resolve(
    what: "str | Path | Run | WordRun | TuneConfig", overrides: Mapping[str, Any] | None = None, tiny: bool = False
) -> "Run | WordRun | TuneConfig":
    """A recipe's name, a config file (or a run's folder), or a run; with overrides applied.

    A name means the recipe, whatever lies in the working directory; a folder of that name is "./name", or a Path.
    """
    overrides = dict(overrides or {})
    named = isinstance(what, str | Path) and not _is_path(what)
    module = find(str(what)) if named else None  # a mistyped name is told before torch is imported

    from onefold.study.tuning.tune import TuneConfig
    from onefold.training.run import Run
    from onefold.training.words.run import WordRun

    if isinstance(what, Run | WordRun | TuneConfig):
        return what.but(overrides)
    if module is not None:
        make = module.tiny if tiny else module.recipe
        return make(**_own(make, overrides)).but(overrides)
    file = Path(what) / "config.json" if Path(what).is_dir() else Path(what)
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"could not read {file}: {error.strerror}") from None
    roots = {root.model_fields["kind"].default: root for root in (WordRun, TuneConfig)}
    root = roots.get(_kind(text), Run)
    return root.from_json(text, source=str(file)).but(overrides)


def _is_path(what: str | Path) -> bool:
    if isinstance(what, str) and what in names():
        return False
    return Path(what).suffix == ".json" or Path(what).is_dir()


def _kind(text: str) -> Any:
    """Which root of configs a file holds; None where it does not say, as a Run does not."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content.get("kind") if isinstance(content, dict) else None


def _own(make, overrides: dict[str, Any]) -> dict[str, Any]:
    """Take the recipe's own parameters out of the overrides."""
    return {name: overrides.pop(name) for name in inspect.signature(make).parameters if name in overrides}


def train(
    what: "str | Path | Run | WordRun | TuneConfig", /, *, tiny: bool = False, **overrides: Any
) -> "Result | WordResult | TuneResult":
    """Train a recipe, a config file or a run, write its report.html, and return what became of it.

        onefold.train("gpt2", tiny=True, data="notes/", out="runs/notes", **{"trainer.steps": 200})

    Given the same `out` again, it goes on where it stopped. Raises UserError for what the caller can mend.
    """
    from onefold.core import dist
    from onefold.study.review import review, review_words
    from onefold.study.tuning import tune
    from onefold.training import run
    from onefold.training.words import run as words

    root = resolve(what, overrides, tiny)
    if isinstance(root, tune.TuneConfig):
        return tune.tune(root)
    if isinstance(root, words.WordRun):
        found = words.train(root)
        if found.status != "interrupted":
            review_words(found)
        return found
    result = run.train(root)
    if result.status != "interrupted" and dist.is_main():
        review(result)
    return result
