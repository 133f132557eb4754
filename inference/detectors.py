"""Owns what finds boxes on a pyramid: torchvision's Faster R-CNN and RetinaNet.

Refuses to know labels and thresholds: every box with a little chance comes out. Both stand on a
feature pyramid network (Lin et al. 2017) over the deepest maps of a ResNet or a MobileNet; other
backbones' maps were never shown to suit it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from inference.errors import BundleError
from inference.pyramid import Pyramid

BACKBONES = ("resnet", "mobilenet")
WIDTH = 128
"""Channels of every level. Half of the paper's and a quarter of its work: the heads start at random
and learn from some dozens of pictures, often without a GPU."""
MOST = 100  # boxes of one picture
LEAST_SCORE = 0.05
ANCHORS = (16, 32, 64, 128, 256)
"""Smallest side of each level's anchors in pixels of the input; each level also has 2^(1/3) and
2^(2/3) times it, and every one in three shapes. Half of torchvision's, since our pictures have 256
to 512 pixels, not 800: from 16 pixels up to 406, which overlaps enough with a whole 512."""
SHAPES = (0.5, 1.0, 2.0)

Target = dict[str, Tensor]


class Detector(nn.Module):
    """One of torchvision's detectors over our encoder.

    Takes what our preprocessing made, and neither resizes nor normalises it again.

    Raises:
        BundleError: the network does not stand on this backbone.
    """

    def __init__(self, network: str, encoder: Pyramid, classes: int) -> None:
        super().__init__()
        if not encoder.backbone.startswith(BACKBONES):
            raise BundleError(
                f"{network} stands on a ResNet or a MobileNet, not on {encoder.backbone!r}"
            )
        self.encoder = encoder
        unused: dict[str, Any] = {"image_mean": [], "image_std": []}  # `_AsItIs` takes over
        if network == "fasterrcnn":
            levels = _Levels(encoder, 4, LastLevelMaxPool())
            self.first = 1  # channel 0 is its background
            self.model: FasterRCNN | RetinaNet = FasterRCNN(
                levels,
                classes + self.first,
                rpn_anchor_generator=_anchors(),
                box_score_thresh=LEAST_SCORE,
                box_detections_per_img=MOST,
                **unused,
            )
        else:
            levels = _Levels(encoder, 3, LastLevelP6P7(WIDTH, WIDTH))
            self.first = 0
            self.model = RetinaNet(
                levels,
                classes,
                anchor_generator=_anchors(),
                score_thresh=LEAST_SCORE,
                detections_per_img=MOST,
                **unused,
            )
        self.model.transform = _AsItIs()

    def forward(self, x: Tensor, targets: list[Target] | None = None) -> Any:
        """``(n, c, rows, columns)``, and in training mode where things are.

        Args:
            x: prepared pictures.
            targets: of each picture ``boxes`` ``(k, 4)`` as left, top, right, bottom on its grid,
                and ``labels`` ``(k,)``, channels from 0.

        Returns:
            In training mode a dict of losses; else for each picture ``boxes`` ``(k, 4)``,
            ``scores`` and ``labels`` ``(k,)``, best first, at most `MOST`.
        """
        if targets is not None:
            targets = [{**t, "labels": t["labels"] + self.first} for t in targets]
        found = self.model(list(x), targets)
        if self.training:
            return found
        return [{**f, "labels": f["labels"] - self.first} for f in found]


class _Levels(nn.Module):
    """The deepest maps of an encoder, each told of the coarser ones, and some coarser still."""

    def __init__(self, encoder: Pyramid, deepest: int, coarser: nn.Module) -> None:
        super().__init__()
        # In a tuple, since as a submodule its tensors would stand in the state dict twice.
        self._held = (encoder,)
        self.deepest = deepest
        self.out_channels = WIDTH
        self.fpn = FeaturePyramidNetwork(encoder.channels[-deepest:], WIDTH, coarser)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self._held[0](x)[-self.deepest :]
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps)))  # type: ignore[no-any-return]  # torch types modules' results as Any


class _AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's transform without what preprocessing did: pads to multiples of 32, no more."""

    def __init__(self) -> None:
        super().__init__(0, 0, [], [])

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        return image, target


def _anchors() -> AnchorGenerator:
    sizes = tuple(tuple(round(side * 2 ** (i / 3)) for i in range(3)) for side in ANCHORS)
    return AnchorGenerator(sizes, (SHAPES,) * len(sizes))
