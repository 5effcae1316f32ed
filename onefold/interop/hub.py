"""Models by their hub id, `org/name`, where the optional huggingface_hub is installed and a network is there."""

import re
from pathlib import Path

from onefold.core.errors import UserError, missing_extra
from onefold.core.progress import say

# What a decoder needs; never code, never pickles when there is something better.
_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "*.model.v*")


def looks_like_id(text: str) -> bool:
    """Whether this could be `org/name` (a path that does not exist could be)."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def fetch(name: str) -> Path:
    """The folder of a hub model, downloaded or from the cache. Raises UserError in one line when it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise missing_extra("huggingface_hub", "hub", f"{name} is not here; fetching it from the hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED), local_files_only=True))
    except Exception:  # not in the cache, or only in part
        pass
    say(f"fetching {name} from the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except RepositoryNotFoundError:
        raise UserError(f"{name} is neither a path here nor a public model on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{name} is no path here, and the hub cannot be reached to fetch it") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{name} could not be fetched from the hub: {str(error).splitlines()[0]}") from None
