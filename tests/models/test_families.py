"""Every published size has exactly the parameters that were published."""

import pytest

from onefold.core.errors import UserError
from onefold.models import families
from onefold.models.transformer import DecoderConfig, count_parameters

COUNTS = {
    families.gpt2: {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200},
    families.pythia: {
        "14m": 14_067_712,
        "31m": 30_494_720,
        "70m": 70_426_624,
        "160m": 162_322_944,
        "410m": 405_334_016,
        "1b": 1_011_781_632,
        "1.4b": 1_414_647_808,
        "2.8b": 2_775_208_960,
        "6.9b": 6_857_302_016,
        "12b": 11_846_072_320,
    },
    families.llama2: {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192},
    families.llama3: {
        "8b": 8_030_261_248,
        "70b": 70_553_706_496,
        "3.1-8b": 8_030_261_248,
        "3.1-70b": 70_553_706_496,
        "3.2-1b": 1_235_814_400,
        "3.2-3b": 3_212_749_824,
    },
    families.mistral: {"7b": 7_241_732_096, "7b-v0.3": 7_248_023_552},
    families.mixtral: {"8x7b": 46_702_792_704, "8x22b": 140_620_634_112},
    families.qwen2: {"0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512, "72b": 72_706_203_648},
    families.qwen3: {
        "0.6b": 596_049_920,
        "1.7b": 1_720_574_976,
        "4b": 4_022_468_096,
        "8b": 8_190_735_360,
        "14b": 14_768_307_200,
        "32b": 32_762_123_264,
    },
}


@pytest.mark.parametrize(("family", "size"), [(f, s) for f, sizes in COUNTS.items() for s in sizes])
def test_published_parameter_counts(family, size):
    config = family(size)
    assert count_parameters(config) == COUNTS[family][size]
    assert DecoderConfig.from_json(config.to_json()) == config


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 70m"):
        families.pythia("71m")
