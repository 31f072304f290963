"""The zoo's architectures: names, shapes, numbers of parameters and MACs, on every data set."""

import copy
import re

import pytest
import torch
from torch import nn

from distiller_ng.models import (
    ALL_MODEL_NAMES,
    CIFAR10_MODEL_NAMES,
    DIGITS_MODEL_NAMES,
    FASHION_MNIST_MODEL_NAMES,
    IMAGENET_MODEL_NAMES,
    MNIST_MODEL_NAMES,
    create_model,
    dataset_shape,
)

META = torch.device("meta")
SMALL_SETS = ["digits", "mnist", "fashion-mnist", "cifar10", "synthetic"]
# One of each family: the others only repeat its blocks.
FAMILIES = [
    "alexnet",
    "alexnet_bn",
    "digits_cnn",
    "mobilenet_025",
    "plain20_cifar",
    "plain20_cifar_nobn",
    "preact_resnet20_cifar",
    "preact_resnet20_cifar_conv_ds",
    "resnet18",
    "resnet20_cifar",
    "simplenet_cifar",
    "simplenet_mnist",
    "simplenet_v2_mnist",
    "vgg11_bn_cifar",
    "vgg11_cifar",
    "vgg11_bn",
]


def on_meta(dataset, arch):
    with META:
        return create_model(False, dataset, arch).eval()


def images(model, batch=2, device=META):
    return torch.zeros(batch, *model.input_shape[1:], device=device)


def macs(model):
    """MACs of convolutions and linear layers for one image, in the order in which they run."""
    counted = []

    def count(layer, _inputs, output):
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            counted.append(output.numel() * layer.in_channels // layer.groups * height * width)
        else:
            counted.append(layer.in_features * layer.out_features)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model(images(model, batch=1))
    for handle in handles:
        handle.remove()
    return counted


def weights(model):
    """Distiller's count: parameters of 2 or 4 dimensions."""
    return sum(p.numel() for p in model.parameters() if p.dim() in (2, 4))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def children(model):
    return [name for name, _ in model.named_children()]


def layer_names(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def test_simplenet_mnist():
    model = on_meta("mnist", "simplenet_mnist")
    assert children(model) == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "fc1", "relu3", "fc2"]
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if "weight" in name} == {
        "conv1.weight": (20, 1, 5, 5),
        "conv2.weight": (50, 20, 5, 5),
        "fc1.weight": (500, 800),
        "fc2.weight": (10, 500),
    }
    assert weights(model) == 430_500
    assert macs(model) == [288_000, 1_600_000, 400_000, 5_000]


def test_simplenet_v2_mnist():
    model = on_meta("mnist", "simplenet_v2_mnist")
    assert children(model) == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "avgpool", "fc"]
    assert weights(model) == 26_000
    assert str(model.avgpool) == "AvgPool2d(kernel_size=4, stride=1, padding=0)"


def test_simplenet_cifar():
    model = on_meta("cifar10", "simplenet_cifar")
    assert children(model) == [
        "conv1",
        "relu_conv1",
        "pool1",
        "conv2",
        "relu_conv2",
        "pool2",
        "fc1",
        "relu_fc1",
        "fc2",
        "relu_fc2",
        "fc3",
    ]
    assert [tuple(m.weight.shape) for m in (model.conv1, model.conv2, model.fc1, model.fc2, model.fc3)] == [
        (6, 3, 5, 5),
        (16, 6, 5, 5),
        (120, 400),
        (84, 120),
        (10, 84),
    ]
    assert macs(model) == [352800, 240000, 48000, 10080, 840]


def test_digits_cnn():
    model = on_meta("digits", "digits_cnn")
    assert children(model) == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "pool", "conv3", "bn3", "relu3", "fc"]
    assert weights(model) == 65_824


@pytest.mark.parametrize(
    ("arch", "count", "total"),
    [("resnet20_cifar", 270_896, 40_813_184), ("resnet56_cifar", 851_504, 125_747_840)],
)
def test_resnet_cifar_sizes(arch, count, total):
    model = on_meta("cifar10", arch)
    assert weights(model) == count
    assert sum(macs(model)) == total


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
@pytest.mark.parametrize("family", ["resnet{}_cifar", "preact_resnet{}_cifar", "preact_resnet{}_cifar_conv_ds"])
def test_resnet_cifar_depths(family, depth, blocks):
    model = on_meta("cifar10", family.format(depth))
    assert [len(layer) for layer in (model.layer1, model.layer2, model.layer3)] == [blocks] * 3
    main = [name for name in layer_names(model, nn.Conv2d | nn.Linear) if "downsample" not in name]
    assert len(main) == depth


def test_resnet_cifar_names():
    model = on_meta("cifar10", "resnet20_cifar")
    assert children(model) == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc"]
    plain = ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "residual_eltwiseadd"]
    assert children(model.layer1[0]) == plain
    assert children(model.layer2[1]) == plain
    assert children(model.layer2[0]) == [
        "conv1",
        "bn1",
        "relu1",
        "conv2",
        "bn2",
        "relu2",
        "downsample",
        "residual_eltwiseadd",
    ]
    assert model.layer3[0].downsample[0].weight.shape == (64, 32, 1, 1)
    assert isinstance(model.layer3[0].downsample[1], nn.BatchNorm2d)
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert str(model.avgpool) == "AvgPool2d(kernel_size=8, stride=1, padding=0)"


def test_resnet_cifar_runs_the_shortcut_after_the_convolutions():
    order = []
    model = on_meta("cifar10", "resnet20_cifar")
    for name, module in model.layer2[0].named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model(images(model))
    assert order == [
        "conv1",
        "bn1",
        "relu1",
        "conv2",
        "bn2",
        "downsample.0",
        "downsample.1",
        "residual_eltwiseadd",
        "relu2",
    ]


def test_he_initialization():
    torch.manual_seed(0)
    model = create_model(False, "cifar10", "resnet20_cifar")
    # fan_out of 64 filters of 3 x 3 is 576.
    assert model.layer3[1].conv1.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert model.layer1[0].conv1.weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)


@pytest.mark.parametrize("arch", ["resnet20_cifar", "preact_resnet20_cifar"])
def test_layer_gates_skip_convolutions(arch):
    torch.manual_seed(0)
    model = create_model(False, "digits", arch).eval()
    x = torch.randn(2, 1, 8, 8)
    whole = model(x)
    model.layer_gates[0][1][:] = [False, False]
    assert model.layer1[1].block_gates == [False, False]
    block = model.layer1[1]
    maps = torch.rand(1, 16, 4, 4)
    torch.testing.assert_close(block(maps), 2 * maps)
    assert not torch.equal(model(x), whole)
    copied = copy.deepcopy(model)
    copied.layer_gates[0][1][:] = [True, True]
    torch.testing.assert_close(copied(x), whole)
    assert model.layer1[1].block_gates == [False, False]


def test_plain20():
    model = on_meta("cifar10", "plain20_cifar")
    assert children(model) == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc"]
    assert children(model.layer2[0]) == ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2"]
    assert len(layer_names(model, nn.Conv2d)) == 19
    bare = on_meta("cifar10", "plain20_cifar_nobn")
    assert children(bare.layer2[0]) == ["conv1", "relu1", "conv2", "relu2"]
    assert layer_names(bare, nn.BatchNorm2d) == []
    assert weights(bare) == weights(model)


def test_preact_resnet_names():
    model = on_meta("cifar10", "preact_resnet20_cifar")
    assert children(model) == ["conv1", "layer1", "layer2", "layer3", "final_bn", "final_relu", "avgpool", "fc"]
    assert children(model.layer1[0]) == ["pre_bn", "pre_relu", "conv1", "bn", "relu", "conv2"]
    assert isinstance(model.layer2[0].downsample[0], nn.AvgPool2d)
    # Without weights on the shortcuts: ResNet-20 less its two 1 x 1 convolutions.
    assert weights(model) == 270_896 - 16 * 32 - 32 * 64
    conv = on_meta("cifar10", "preact_resnet20_cifar_conv_ds")
    assert conv.layer2[0].downsample.weight.shape == (32, 16, 1, 1)
    assert weights(conv) == 270_896


def test_preact_shortcut_averages_and_pads_with_zero_channels():
    model = create_model(False, "cifar10", "preact_resnet20_cifar")
    shortcut = model.layer2[0].downsample(torch.ones(1, 16, 4, 4))
    assert shortcut.shape == (1, 32, 2, 2)
    assert shortcut.sum((0, 2, 3)).tolist() == [0.0] * 8 + [4.0] * 16 + [0.0] * 8


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
@pytest.mark.parametrize("norm", ["", "_bn"])
def test_vgg_names(depth, convolutions, norm):
    for arch, dataset in ((f"vgg{depth}{norm}_cifar", "cifar10"), (f"vgg{depth}{norm}", "imagenet")):
        model = on_meta(dataset, arch)
        assert len(layer_names(model.features, nn.Conv2d)) == convolutions
        assert len(layer_names(model.features, nn.BatchNorm2d)) == (convolutions if norm else 0)
        assert model.features[-1].kernel_size == 2
    assert layer_names(model.classifier, nn.Linear) == ["0", "3", "6"]


def test_vgg_numbers():
    assert layer_names(on_meta("cifar10", "vgg16_cifar").features, nn.Conv2d) == (
        ["0", "2", "5", "7", "10", "12", "14", "17", "19", "21", "24", "26", "28"]
    )
    assert on_meta("cifar10", "vgg16_cifar").classifier.weight.shape == (10, 512)
    assert on_meta("imagenet", "vgg19").features[34].weight.shape == (512, 512, 3, 3)
    assert on_meta("imagenet", "vgg19").classifier[0].weight.shape == (4096, 25088)
    assert layer_names(on_meta("cifar10", "vgg11_bn_cifar").features, nn.Conv2d) == [
        "0",
        "4",
        "8",
        "11",
        "15",
        "18",
        "22",
        "25",
    ]


def test_mobilenet():
    model = on_meta("imagenet", "mobilenet")
    assert children(model) == ["model", "fc"]
    assert [str(index) for index in range(15)] == children(model.model)
    assert [type(m).__name__ for m in model.model[13]] == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert model.model[13][0].groups == 1024
    assert model.model[13][3].weight.shape == (1024, 1024, 1, 1)
    assert str(model.model[14]) == "AvgPool2d(kernel_size=7, stride=7, padding=0)"
    assert macs(model) == [
        *(10838016, 3612672, 25690112, 1806336, 25690112, 3612672, 51380224, 903168, 25690112, 1806336),
        *(51380224, 451584, 25690112, *(903168, 51380224) * 5, 225792, 25690112, 451584, 51380224, 1024000),
    ]


@pytest.mark.parametrize(
    ("arch", "widths"),
    [("mobilenet_025", (8, 256)), ("mobilenet_050", (16, 512)), ("mobilenet_075", (24, 768))],
)
def test_mobilenet_widths(arch, widths):
    model = on_meta("imagenet", arch)
    assert (model.model[0][0].out_channels, model.fc.in_features) == widths


@pytest.mark.parametrize(
    ("arch", "count"),
    [
        ("alexnet", 61_100_840),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("vgg19_bn", 143_678_248),
    ],
)
def test_imagenet_models_have_torchvisions_size(arch, count):
    assert parameters(on_meta("imagenet", arch)) == count


def test_imagenet_resnet_names():
    model = on_meta("imagenet", "resnet18")
    assert children(model) == [
        "conv1",
        "bn1",
        "relu",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "avgpool",
        "fc",
    ]
    assert children(model.layer1[0]) == ["conv1", "bn1", "relu1", "conv2", "bn2", "add", "relu2"]
    assert children(model.layer2[0]) == ["conv1", "bn1", "relu1", "conv2", "bn2", "downsample", "add", "relu2"]
    deep = on_meta("imagenet", "resnet50")
    block = ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "conv3", "bn3", "downsample", "add", "relu3"]
    assert children(deep.layer1[0]) == block
    assert children(deep.layer1[1]) == [name for name in block if name != "downsample"]
    assert (deep.layer2[0].conv1.stride, deep.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    assert len([name for name in layer_names(deep, nn.Conv2d) if "downsample" not in name]) == 49
    assert sum(macs(model)) == 1_814_073_344


def test_alexnet_names():
    model = on_meta("imagenet", "alexnet")
    assert layer_names(model.features, nn.Conv2d) == ["0", "3", "6", "8", "10"]
    assert layer_names(model.classifier, nn.Linear) == ["1", "4", "6"]
    assert sum(macs(model)) == 714_188_480


def test_alexnet_bn_names():
    model = on_meta("imagenet", "alexnet_bn")
    kinds = [type(module).__name__ for module in model.features]
    conv = ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"]
    assert kinds == ["Conv2d", "ReLU", *conv, *conv, "Conv2d", "BatchNorm2d", "ReLU", *conv]
    assert [type(m).__name__ for m in model.classifier] == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    # DoReFa's schedule leaves the first and last layers and their activations in full precision by these names.
    modules = dict(model.named_modules())
    assert [type(modules[f]).__name__ for f in ("features.0", "features.1", "classifier.5", "classifier.6")] == [
        "Conv2d",
        "ReLU",
        "ReLU",
        "Linear",
    ]
    assert model.features[0].weight.shape == (96, 3, 12, 12)
    assert model.features[2].weight.shape == (256, 48, 5, 5)
    assert model.classifier[0].weight.shape == (4096, 9216)
    assert (model.features[3].eps, model.features[3].momentum) == (1e-4, 0.9)


def test_names_by_data_set():
    assert DIGITS_MODEL_NAMES == ("digits_cnn",)
    assert MNIST_MODEL_NAMES == FASHION_MNIST_MODEL_NAMES == ("simplenet_mnist", "simplenet_v2_mnist")
    assert all("cifar" in name for name in CIFAR10_MODEL_NAMES)
    assert len(CIFAR10_MODEL_NAMES) == 5 + 10 + 2 + 8 + 1 + 6  # the last with early exits
    assert {"resnet50", "alexnet_bn", "vgg16", "mobilenet_075"} <= set(IMAGENET_MODEL_NAMES)
    lists = (DIGITS_MODEL_NAMES, MNIST_MODEL_NAMES, CIFAR10_MODEL_NAMES, IMAGENET_MODEL_NAMES)
    assert list(ALL_MODEL_NAMES) == sorted(name for names in lists for name in names)


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_fits_every_small_data_set(arch):
    modules_at_home = None
    for dataset in SMALL_SETS:
        model = on_meta(dataset, arch)
        assert model(images(model)).shape == (2, 10)
        modules = [name for name, _ in model.named_modules()]
        modules_at_home = modules_at_home or modules
        assert modules == modules_at_home


@pytest.mark.slow
@pytest.mark.parametrize("arch", ALL_MODEL_NAMES)
def test_every_model_fits_every_data_set(arch):
    for dataset in [*SMALL_SETS, "imagenet", "synthetic:5x3x50:7", "synthetic:2x1x1:3", "synthetic:3x30x31"]:
        model = on_meta(dataset, arch)
        outputs = model(images(model))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        assert {output.shape for output in outputs} == {(2, dataset_shape(dataset).num_classes)}
        assert len(outputs) == 1 + (arch.endswith("earlyexit")) + (arch == "resnet50_earlyexit")


@pytest.mark.parametrize(
    "arch", [arch for arch in FAMILIES if not re.fullmatch(r"alexnet.*|vgg11_bn|vgg11_cifar", arch)]
)
def test_small_models_train_on_digits(arch):
    torch.manual_seed(0)
    model = create_model(False, "digits", arch)
    images_, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    loss = nn.functional.cross_entropy(model(images_), labels)
    loss.backward()
    assert loss.isfinite()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert gradients[next(iter(gradients))].abs().sum() > 0


def test_a_model_of_the_zoo_can_be_exported():
    model = create_model(False, "digits", "preact_resnet20_cifar").eval()
    x = torch.randn(2, 1, 8, 8)
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.slow
def test_digits_cnn_learns_the_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1437], order[1437:]
    model = create_model(False, "digits", "digits_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(5):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
    assert accuracy > 0.97
