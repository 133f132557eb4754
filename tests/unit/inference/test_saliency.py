from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model

from inference.manifest import Preprocessing
from inference.preprocessing import geometry, prepare
from inference.saliency import grad_cam, last_convolution, on_source
from tests import stacks
from tests.data import shared

SIZE = 48
SQUARE = 12
QUADRANTS = [(6, 6), (6, 30), (30, 6), (30, 30)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Small(nn.Module):
    """Tells whether there is a bright square, wherever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.dropout(self.features(x).mean((2, 3)), 0.1, self.training))


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Noise; every second one with a bright square in one of four quadrants, else a dark one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.2, (n, 1, SIZE, SIZE)).astype(np.float32)
    y = np.arange(n) % 2
    places = [QUADRANTS[int(i)] for i in rng.integers(0, 4, n)]
    for picture, bright, (top, left) in zip(x[:, 0], y, places, strict=True):
        picture[top : top + SQUARE, left : left + SQUARE] += 1.0 if bright else -1.0
    return torch.from_numpy(x), torch.from_numpy(y), places


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> Small:
    torch.manual_seed(0)
    network = Small()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(60):
        x, y, _ = pictures(32, step)
        optimiser.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    optimiser.zero_grad()
    x, y, _ = pictures(64, 999)
    network.eval().requires_grad_(False)
    assert (network(x).argmax(1) == y).float().mean() > 0.95
    return network


def test_the_heat_is_highest_on_what_the_class_is_about(trained: Small) -> None:
    x, y, places = pictures(40, 1000)
    heat = grad_cam(trained, last_convolution(trained, x[:1]), x, 1)
    assert heat.shape == (40, SIZE, SIZE)
    for one, bright, (top, left) in zip(heat, y, places, strict=True):
        if bright:
            row, column = np.unravel_index(int(one.argmax()), one.shape)
            assert top <= row < top + SQUARE and left <= column < left + SQUARE
            outside = one.clone()
            outside[top - 4 : top + SQUARE + 4, left - 4 : left + SQUARE + 4] = 0
            assert outside.max() < 0.5


def test_the_maps_are_from_0_to_1_and_each_has_its_own_highest_place(trained: Small) -> None:
    x, y, _ = pictures(8, 5)
    heat = grad_cam(trained, last_convolution(trained, x), x, 1)
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    assert torch.allclose(heat[y == 1].amax((1, 2)), torch.ones(4))
    one = grad_cam(trained, last_convolution(trained, x), x[1:2], 1)
    assert torch.allclose(one[0], heat[1], atol=1e-5)


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return -self.conv(x).abs().mean((2, 3))

    network = Never().eval()
    nn.init.constant_(network.conv.weight, 1.0)
    nn.init.zeros_(network.conv.bias)
    heat = grad_cam(network, network.conv, torch.ones(1, 1, 8, 8), 0)
    assert heat.tolist() == torch.zeros(1, 8, 8).tolist()


def test_it_works_where_inference_forbids_gradients(trained: Small) -> None:
    x, _, _ = pictures(2, 3)
    layer = last_convolution(trained, x)
    expected = grad_cam(trained, layer, x, 1)
    with torch.inference_mode():
        inside = grad_cam(trained, layer, x * 1, 1)
        assert torch.equal(inside, expected)
    assert not expected.requires_grad


@pytest.mark.parametrize("target", [1, 99])
def test_the_network_is_left_as_it_was_even_when_something_raises(target: int) -> None:
    torch.manual_seed(0)
    network = Small().train()
    network.features[4].eval()  # a module in a mode of its own
    for parameter in network.features.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    wanted = [p.requires_grad for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    x, _, _ = pictures(2, 3)
    layer = last_convolution(network, x)
    if target == 99:
        with pytest.raises(IndexError):
            grad_cam(network, layer, x, target)
    else:
        grad_cam(network, layer, x, target)
    assert all(not m._forward_hooks and not m._backward_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_hooks_go_when_the_network_refuses_the_input(trained: Small) -> None:
    wrong = torch.zeros(1, 3, SIZE, SIZE)
    with pytest.raises(RuntimeError):
        last_convolution(trained, wrong)
    with pytest.raises(RuntimeError):
        grad_cam(trained, trained.features[4], wrong, 1)
    assert all(not m._forward_hooks for m in trained.modules())


def test_a_layer_that_takes_no_part_or_gives_no_maps_is_refused(trained: Small) -> None:
    x, _, _ = pictures(1, 0)
    with pytest.raises(ValueError, match="no part"):
        grad_cam(trained, nn.Conv2d(1, 1, 1), x, 1)
    with pytest.raises(ValueError, match="no maps"):
        grad_cam(trained, trained.head, x, 1)


def test_a_network_without_a_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="no convolution"):
        last_convolution(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "features.11"),
        ("vgg11", "features.19"),
        ("vgg11_bn", "features.27"),
        ("googlenet", "inception5b"),
        ("resnet18", "layer4"),
        ("mobilenet_v2", "features"),
        ("densenet121", "features"),
        ("squeezenet1_1", "classifier.2"),
    ],
)
def test_torchvisions_networks_show_their_last_maps(name: str, layer: str) -> None:
    torch.manual_seed(0)
    more = {"init_weights": True} if name == "googlenet" else {}
    network = get_model(name, weights=None, **more).eval().requires_grad_(False)
    found = last_convolution(network)
    assert found is network.get_submodule(layer)
    heat = grad_cam(network, found, torch.randn(2, 3, 96, 128), 3)
    assert heat.shape == (2, 96, 128)
    assert heat.min() >= 0 and heat.max() <= 1 and heat.isfinite().all()


def ball(row: int, column: int, radius: int = 40) -> tuple[Tensor, NDArray[np.bool_]]:
    """An orange ball on a plain background, prepared for ImageNet, and where it is."""
    y, x = np.mgrid[:224, :224]
    inside = np.hypot(y - row, x - column) < radius
    lit = np.hypot(y - row + 0.4 * radius, x - column + 0.4 * radius) / (1.6 * radius)
    picture = np.full((224, 224, 3), 0.75)
    picture[inside] = (np.array([1.0, 0.55, 0.05]) * np.clip(1 - 0.6 * lit, 0, 1)[..., None])[
        inside
    ]
    prepared = (torch.from_numpy(picture).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    return prepared.permute(2, 0, 1)[None], inside


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet50", "resnet50_imagenet_keras_fp16.pth"),
        ("mobilenet_v2", "mobilenet_v2_imagenet_qat_fp16.pth"),
        ("squeezenet1_1", "squeezenet1_1_imagenet_caffe_fp16.pth"),
    ],
)
def test_a_pretrained_network_looks_at_the_ball(name: str, file: str) -> None:
    network = get_model(name, weights=None)
    network.load_state_dict(torch.load(shared("weights", file), weights_only=True))
    network = network.float().eval().requires_grad_(False)
    layer = last_convolution(network)
    for place in ((60, 60), (60, 164), (164, 112)):
        x, inside = ball(*place)
        heat = grad_cam(network, layer, x, int(network(x).argmax()))[0]
        assert inside[np.unravel_index(int(heat.argmax()), heat.shape)]


def spec(**changes: object) -> Preprocessing:
    given: dict[str, object] = {
        "window": (0.0, 1.0),
        "size": (64, 64),
        "fit": "pad",
        "orient": True,
        "mean": [0.0],
        "std": [1.0],
    }
    return Preprocessing(**(given | changes))


@pytest.mark.parametrize("orientation", [("L", "F"), ("R", "F"), ("F", "L"), ("H", "R"), None])
def test_a_map_comes_back_to_the_place_it_was_seen_at(orientation: tuple[str, str] | None) -> None:
    pixels = np.zeros((100, 60), np.float32)
    pixels[70:80, 10:20] = 1
    stack = stacks.radiograph(pixels, patient_orientation=orientation)
    x, where = prepare(stack, spec())
    heat = on_source(x[:, 0], where)
    assert heat.shape == (1, 100, 60) and heat.dtype == np.float32
    assert heat.flags.c_contiguous and heat.min() >= 0 and heat.max() <= 1
    row, column = np.unravel_index(int(heat[0].argmax()), heat[0].shape)
    assert 70 <= row < 80 and 10 <= column < 20
    assert heat[0, 10, 50] == 0


def test_heat_on_padding_is_cut_off_and_nothing_made_brighter() -> None:
    where = geometry(stacks.radiograph(np.zeros((100, 50), np.float32)), spec(size=(64, 64)))
    maps = torch.zeros(1, 64, 64)
    maps[:, 30, 2] = 1.0  # left of the content
    maps[:, 30, 32] = 0.4
    assert 0.2 < on_source(maps, where).max() <= 0.4
