"""What a source of sequences is asked for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from onefold.data.prepared import Split


class Row(NamedTuple):
    """A sequence. split: where its source says that it belongs; None: that is to be chosen."""

    name: str
    symbols: Sequence[str]
    label: str
    split: Split | None = None


class Symbolic(Protocol):
    """A config that makes or reads sequences, the same ones each time."""

    def rows(self) -> Iterator[Row]:
        """All of them, one after another. Errors: UserError that names the file."""
        ...

    def size(self) -> int:
        """How many there are."""
        ...

    def words(self) -> list[str]:
        """The symbols that there may be, in the order in which they become tokens."""
        ...

    def classes(self) -> list[str]:
        """The labels that there are, in the order in which they become outputs."""
        ...

    def stamp(self) -> dict[str, str | None]:
        """Of the files that are read: see `prepared`."""
        ...
