"""What is the same about every loaded model, whatever it reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from onefold.adapt.merge import merge_active
from onefold.adapt.surgery import switch_of
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.text.tokenizers.tokenizer import Tokenizer
from onefold.interop.loaded import Loaded


class Opened:
    """A loaded model that can be told from others and saved; `network` is the module, in evaluation mode."""

    def __init__(self, loaded: Loaded):
        self._loaded = loaded
        self.network: nn.Module = loaded.model.eval()

    @property
    def config(self) -> Config:
        return self._loaded.config

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that the model has beside its weights."""
        return list(switch_of(self.network).names)

    @property
    def adapter(self) -> str | None:
        """The one that is at work; None: the model is as it was before."""
        return switch_of(self.network).active

    def use(self, adapter: str | None) -> None:
        """Let this adapter work from now on, or none. Raises UserError naming those that there are."""
        switch_of(self.network).use(adapter)

    def merge(self) -> None:
        """Make the adapter at work a part of the weights, so that it costs nothing, until `unmerge` or `use`.

        Memory: those weights once more, on the host. Models that write and have one adapter do it themselves where
        that pays. Raises UserError where none is at work, and for weights of fewer bits.
        """
        merge_active(self.network)

    def unmerge(self) -> None:
        """Give the weights their own numbers back, to the last bit; the adapter works beside them again."""
        switch_of(self.network).unmerge()

    @property
    def card(self) -> Mapping[str, Any]:
        """Where the model came from, as plain values."""
        return self._loaded.card

    @property
    def parameters_count(self) -> int:
        """Parameters, shared ones once."""
        return sum(p.numel() for p in self.network.parameters())

    def save(
        self,
        path: str | Path,
        format: Literal["onefold", "hf", "gguf", "timm", "esm", "peft"] = "onefold",
        **options: Any,
    ) -> None:
        """Write our folder, or one that transformers opens ("hf"; `dtype=` other than the model's).

        Models of text also as a .gguf file ("gguf"; `kind="F16"`), those of pictures as a folder that timm opens
        ("timm"), those of proteins as ESM's own files ("esm"). The adapter at work is merged into the weights, or
        written by itself ("peft"). Raises UserError for a format that cannot hold the model.
        """
        from onefold.interop.save import save

        save(self._loaded, path, format, **options)


class OpenedText(Opened):
    """A loaded model of text."""

    @property
    def tokenizer(self) -> Tokenizer:
        if self._loaded.tokenizer is None:
            raise UserError("this model came without a tokenizer; give token ids, or put its tokenizer.json beside it")
        return self._loaded.tokenizer
