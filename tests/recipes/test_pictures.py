"""What the checks of picture models share."""

from pathlib import Path

from onefold.data.pictures.store import info
from onefold.recipes.vision._pictures import stored
from tests.data.pictures.makers import class_folders


def images(place):
    facts = info(place)["facts"]
    return facts["train"]["images"] + facts["held_out"]["images"]


def test_a_store_is_that_of_its_source_as_it_is_now(tmp_path, monkeypatch):
    """Sources of one name are not taken for each other; what has not changed is not built again."""
    monkeypatch.chdir(tmp_path)
    one, two = (str(class_folders(tmp_path / str(each) / "pictures", each=each)) for each in (4, 6))
    place = Path(stored(one))
    assert images(place) == 8
    built = place.stat().st_ino
    assert Path(stored(one)) == place
    assert place.stat().st_ino == built
    assert images(stored(two)) == 12
    class_folders(Path(two), ("cow",), each=1)
    assert images(stored(two)) == 13
