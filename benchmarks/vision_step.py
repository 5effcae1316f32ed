"""Forward and backward pass of picture models against timm: same weights, same pictures, fp32.

    python benchmarks/vision_step.py                       # ViT-Ti and ConvNeXt-T at 224², ViT-Ti and a ConvNeXt at 32²
    python benchmarks/vision_step.py --rounds 20 --threads 1

timm runs as its users run it: its default layers, pictures as a loader gives them (channels first). Needs
`pip install --no-deps timm`. Ratios above 1 mean that Onefold is faster.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from race import begin, parser, race
from torch import Tensor, nn

from onefold.core.config import Config
from onefold.interop.table import own_weights
from onefold.interop.vision.folder import write_config
from onefold.models.transformer import count_parameters
from onefold.models.vision import sizes as vision_sizes

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.interop.timm_oracle import timm

SMALL = {"patch": 4, "width": 192, "depth": 6}
CASES = {
    "ViT-Ti/16": (vision_sizes.vit("ti/16"), 8),
    "ConvNeXt-T": (vision_sizes.convnext("t"), 4),
    "ResNet-50": (vision_sizes.resnet("50"), 4),
    "ViT 192x6/4, 32²": (vision_sizes.vit("ti/16", image=32, classes=10).but(SMALL), 64),
    "ConvNeXt 48-384, 32²": (
        vision_sizes.convnext(image=32, classes=10).but(
            {"patch": 1, "blocks": [2, 2, 4, 2], "widths": [48, 96, 192, 384]}
        ),
        64,
    ),
}


def theirs(config: Config) -> nn.Module:
    """timm's model of the same shape."""
    said = write_config(config, "timm", only=True)[1]
    return timm().create_model(said["architecture"], num_classes=config.classes, **said["model_args"])


def passes(model: nn.Module, pixels: Tensor, targets: Tensor, steps: int, clock: Callable[[], float]):
    """A function that computes a loss and its gradients `steps` times and returns the seconds of one."""
    model.train()

    def run() -> float:
        began = clock()
        for _ in range(steps):
            F.cross_entropy(model(pixels), targets).backward()
            model.zero_grad()
        return (clock() - began) / steps

    run()  # warm-up: allocations
    return run


def main() -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--steps", type=int, default=1, help="passes a round")
    made.add_argument("--only", default="", help="names that begin so")
    timm()
    options = begin(made)
    for name, (config, rows) in CASES.items():
        if not name.startswith(options.only):
            continue
        torch.manual_seed(0)
        reference, model = theirs(config), config.build()
        names = write_config(config, "timm", only=True)[0].names(config)
        model.load_state_dict(names.read(own_weights(model), reference.state_dict(), "timm"))
        pixels = torch.randn(rows, config.channels, config.image, config.image)
        targets = torch.randint(0, config.classes, (rows,))
        print(f"\n{name}, {count_parameters(config):,} parameters, {rows} pictures of {config.image}² a step")
        contenders = {
            "timm": passes(reference, pixels, targets, options.steps, options.clock),
            "onefold": passes(model, pixels, targets, options.steps, options.clock),
        }
        race(contenders, options.rounds, "timm")


if __name__ == "__main__":
    main()
