"""What a folder of prepared data says of itself: `data.json` = {"stamps": of its sources, "facts": what it holds}."""

import json
from pathlib import Path
from typing import Any

from onefold.core.errors import UserError

FACTS, PROCESSOR = "data.json", "processor"


def read_contents(folder: Path) -> dict[str, Any]:
    """All of it. Raises UserError when it is missing or damaged."""
    file = folder / FACTS
    try:
        contents = json.loads(file.read_text())
        if not (isinstance(contents["stamps"], dict) and isinstance(contents["facts"]["hash"], str)):
            raise TypeError
    except FileNotFoundError:
        raise UserError(f"{file} is missing: prepare the data again, or restore it") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged: prepare the data again, or restore it") from None
    return contents


def read_facts(folder: Path) -> dict[str, Any]:
    """What the folder holds. Raises UserError when that is missing or damaged."""
    return read_contents(folder)["facts"]
