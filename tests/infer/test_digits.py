"""The whole way of a picture on the digits that come along: data, model, features, predictions, classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onefold.data.pictures.images import ImageData, ImageDataset
from onefold.infer.classify import Classifier, predict
from onefold.infer.evaluation.features import judge_features
from onefold.interop.loaded import Loaded
from onefold.models.vision import sizes as vision_sizes
from onefold.study.pages.pictures import picture_results, picture_sections


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> ImageDataset:
    folder: Path = tmp_path_factory.mktemp("digits")
    return ImageData(held_out=0.2).prepare(folder)


@pytest.fixture(scope="module")
def network(digits):
    config = vision_sizes.convnext(image=8, classes=10).but(
        {"channels": 1, "blocks": [1, 1], "widths": [16, 24], "patch": 2, "kernel": 3, "layer_scale": 1.0}
    )
    torch.manual_seed(0)
    return config.build().eval()


def test_features_of_a_fresh_network_tell_digits_apart(digits, network):
    found = judge_features(network, digits, rows=256)
    assert found["neighbours"] > 0.6  # shapes are told apart by random filters already
    assert found["probe"] > 0.7


def test_a_classifier_sees_what_evaluations_see(digits, network):
    said = predict(network, digits.evaluation("held_out", 100))
    asked = Classifier(Loaded(network.config, network, digits.processor))
    batch = next(iter(digits.evaluation("held_out", 7)))
    pictures = [np.array(picture.permute(1, 2, 0)) for picture in batch.images]
    assert torch.equal(asked.look(pictures), batch.images)
    torch.testing.assert_close(asked.classify(pictures), said.probabilities[:7], rtol=1e-4, atol=1e-5)
    assert asked.classes == tuple("0123456789")


def test_a_report_of_digits(digits, network):
    batches = digits.evaluation("held_out", 64)
    found = picture_results(network, batches, digits.classes, mistakes=3)
    assert sum(count for *_, count in found["confusion"]) == digits.size("held_out")
    shown = {int(row): image for batch in batches for row, image in zip(batch.rows_of.clone(), batch.images.clone())}
    said = predict(network, batches)
    for shot in found["mistakes"]:
        place = said.rows.tolist().index(shot["row"])
        assert digits.classes[said.truth[place]] == shot["truth"]
        assert shot["row"] in shown
    assert picture_sections(found).count("<img") == 2 * (3 + len(found["looks"]))
