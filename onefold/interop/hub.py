"""Models by their hub id, `org/name`, where the optional huggingface_hub is installed and a network is there."""

import re
from pathlib import Path

from onefold.core.errors import UserError, missing_extra
from onefold.core.progress import say

_FIRST = ("*.json", "*.safetensors", "tokenizer.model*", "*.jinja", "merges.txt")
_OTHERWISE = ("consolidated*", "pytorch_model*.bin")
# The same weights again, in the makers' own format or in folders below.
_TWICE = ("consolidated*", "*/*")


def looks_like_id(text: str) -> bool:
    """Whether this could be `org/name` (a path that does not exist could be, too)."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def fetch(name: str) -> Path:
    """The folder of a hub model, fetched or from the cache. Raises UserError in one line when it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"{name} is not here; fetching it from the hub") from None
    say(f"looking for {name} on the hub")
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(_FIRST), ignore_patterns=list(_TWICE)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_FIRST, *_OTHERWISE], ignore_patterns=["*/*"]))
    except RepositoryNotFoundError:
        raise UserError(f"{name} is neither a path here nor a public model on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{name} is no path here, and the hub cannot be reached to fetch it") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{name} could not be fetched from the hub: {str(error).splitlines()[0]}") from None
    return folder
