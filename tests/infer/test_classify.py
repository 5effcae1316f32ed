"""What a model says of pictures: probabilities in order, and figures of them that are counted by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from onefold.core.batch import ImageBatch
from onefold.core.config import Config
from onefold.core.errors import UserError
from onefold.data.pictures.reader import PictureReader
from onefold.infer import classify
from onefold.infer.classify import Classifier, Predictions, evaluate_pictures, predict
from onefold.interop.loaded import Loaded
from tests.data.pictures.makers import class_folders
from tests.objectives.small_pictures import SmallClassifier, picture_batch


class Small(Config):
    """What a classifier asks of a model's config."""

    classes: int = 10


READER = PictureReader(side=8, mean=(0.4, 0.5, 0.6), std=(0.2,), classes=tuple("abcdefghij"))


def loaded(reader: PictureReader | None = READER, classes: int = 10, model: nn.Module | None = None) -> Loaded:
    return Loaded(Small(classes=classes), model or SmallClassifier().train(), reader)


def test_predictions_are_the_models_in_order():
    model, batch = SmallClassifier().train(), picture_batch(7)
    found = predict(model, batch.split(3))
    torch.testing.assert_close(found.probabilities, model(batch.pixels()).softmax(1).detach())
    assert torch.equal(found.truth, batch.targets.argmax(1))
    assert found.rows.tolist() == list(range(7))
    assert model.training
    unnumbered = ImageBatch(images=batch.images, targets=batch.targets)
    assert predict(model, unnumbered.split(2)).rows.tolist() == list(range(7))
    with pytest.raises(UserError, match="no pictures"):
        predict(model, [])
    with pytest.raises(UserError, match="no classes"):
        predict(model, [ImageBatch(images=batch.images)])


def test_figures_of_predictions():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.35, 0.4, 0.25], [0.5, 0.3, 0.2], [0.0, 0.01, 0.99]])
    found = Predictions(probabilities, torch.tensor([0, 0, 1, 0]), torch.arange(4))
    assert found.guesses.tolist() == [0, 1, 0, 2]
    assert found.accuracy == 0.25
    assert found.top(2) == 0.75
    assert found.top(99) == 1.0
    np.testing.assert_allclose(found.losses[:3].numpy(), -np.log([0.7, 0.35, 0.3]), rtol=1e-6)
    assert torch.isfinite(found.losses).all()  # also of what was held impossible


def test_a_classifier_sees_pictures_as_its_reader_says(monkeypatch):
    monkeypatch.setattr(classify, "ROWS", 2)
    asked = Classifier(loaded())
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in range(5)]
    found = asked.classify(pictures)
    pixels = (np.stack(pictures) / 255 - np.array(READER.mean)) / READER.std[0]
    expected = asked.network(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)).softmax(1)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(asked.classify(asked.look(pictures)), found)
    assert not asked.network.training

    best = asked.best(pictures, top=3)
    order = found.argsort(1, descending=True)
    assert [name for name, _ in best[0]] == [READER.classes[i] for i in order[0, :3]]
    assert best[4][0][1] == pytest.approx(float(found[4].max()))
    assert len(asked.best(pictures, top=99)[0]) == 10


def test_no_pictures_have_no_probabilities():
    assert Classifier(loaded()).classify([]).shape == (0, 10)


def test_classes_without_names_are_numbers():
    assert Classifier(loaded(READER.but({"classes": []}))).classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("what", "message"), [(loaded(reader=None), r"pictures\.json"), (loaded(classes=0), "no classifier")]
)
def test_what_cannot_classify_says_so(what, message):
    with pytest.raises(UserError, match=message):
        Classifier(what)


@pytest.mark.parametrize("single", ["a.png", b"", np.zeros((8, 8, 3), np.uint8)])
def test_a_single_picture_is_a_list_of_one(single):
    with pytest.raises(UserError, match="a list of pictures"):
        Classifier(loaded()).classify(single)


@pytest.mark.parametrize("names", [(), tuple("0123456789")])
def test_pictures_of_some_of_the_classes_are_evaluated(tmp_path, names):
    class_folders(tmp_path / "some", ("2", "7"), each=4, size=(8, 8, 3))
    asked = Classifier(loaded(READER.but({"classes": list(names)})))
    said = evaluate_pictures(asked, str(tmp_path / "some"))
    assert said.probabilities.shape == (8, 10)
    assert sorted(said.truth.tolist()) == [2] * 4 + [7] * 4
    class_folders(tmp_path / "some", ("eel",), each=1, size=(8, 8, 3))
    with pytest.raises(UserError, match="classes that the model does not know: eel"):
        evaluate_pictures(asked, str(tmp_path / "some"))
