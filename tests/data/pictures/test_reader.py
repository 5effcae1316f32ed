import pytest

from onefold.core.errors import UserError
from onefold.data.pictures.reader import FILE, PictureReader


@pytest.mark.parametrize("scale", [{"mean": (0.1, 0.2)}, {"std": (0.1, 0.2, 0.3, 0.4)}, {"mean": ()}])
def test_a_scale_of_other_channels_is_one_clear_line(tmp_path, scale):
    [name] = scale
    with pytest.raises(UserError, match=f"^{name} has .* values for pictures of 3 channels: give 1 or 3$"):
        PictureReader(side=8, **scale)
    reader = PictureReader(side=8, mean=(0.1, 0.2, 0.3))
    reader.save(tmp_path)
    assert PictureReader.load(tmp_path) == reader
    file = tmp_path / FILE
    file.write_text(file.read_text().replace('"channels": 3', '"channels": 1'))
    with pytest.raises(UserError, match=r"pictures\.json: mean has 3 values for pictures of 1 channels") as error:
        PictureReader.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named_and_none_is_none(tmp_path):
    assert PictureReader.load(tmp_path) is None
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match=r"pictures\.json: .*not valid JSON"):
        PictureReader.load(tmp_path)
