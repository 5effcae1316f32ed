"""A file is the old one or the new one, whatever happens in between."""

import pytest

from onefold.core.errors import UserError
from onefold.core.files import atomic_file, atomic_write


def test_it_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write(path, "old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(28, "No space left on device"), UserError, "could not write .*a.txt: No space left.*is untouched"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error, raised, said):
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")

    def broken_off():
        with atomic_file(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(raised, match=said):
        broken_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
