"""Post-training quantization as schedules describe it, and what is wrong with what users give it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.data_loggers import collect_quant_stats, load_quant_stats, save_quant_stats
from distiller_ng.errors import CalibrationError, GraphError, LifecycleError, ScheduleError, ScheduleWarning
from distiller_ng.quantization import PostTrainLinearQuantizer, RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.ptq_notes import accumulator_bits
from distiller_ng.quantization.ptq_settings import ModuleQuantMode

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.conv2(self.relu(self.conv1(x))) + self.downsample(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.layer1, self.layer2 = nn.Conv2d(3, 4, 3), nn.Sequential(Block(), Block()), Block()
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.avgpool(self.layer2(self.layer1(self.conv1(x)))).flatten(1))


def net():
    torch.manual_seed(0)
    return Net().eval()


def stats_file(folder):
    collect_quant_stats(net(), lambda model: model(IMAGES), save_dir=folder)
    return folder / "acts_quantization_stats.yaml"


LAPQ_SHAPE = """
quantizers:
  post_train_quantizer:
    class: PostTrainLinearQuantizer
    bits_activations: null
    bits_parameters: null
    bits_accum: 32
    mode:
      activations: ASYMMETRIC_UNSIGNED
      weights: SYMMETRIC
    model_activation_stats: {stats}
    per_channel_wts: False
    inputs_quant_auto_fallback: True
    overrides:
      conv1:
        bits_activations: 8
        bits_weights: 8
      layer.*conv.*:
        bits_activations: 4
        bits_weights: 5
        quantize_inputs: False
      .*downsample\\.0.*:
        bits_weights: 6
        bits_activations: 6
      layer1.1.conv2:
        bits_weights: 8
        bits_activations: 8
      .*add:
        bits_activations: 7
"""


def test_the_shape_of_a_searched_schedule(tmp_path):
    path = tmp_path / "lapq.yaml"
    path.write_text(LAPQ_SHAPE.format(stats=stats_file(tmp_path)))
    model = net()
    quantizer = distiller.config_component_from_file_by_class(model, path, "PostTrainLinearQuantizer")
    quantizer.prepare_model(IMAGES)
    found = {
        name: (module.output_quant_settings.num_bits, module.wts_quant_settings.num_bits, module.quantize_inputs)
        for name, module in model.named_modules()
        if isinstance(module, RangeLinearQuantParamLayerWrapper)
    }
    assert found == {
        "conv1": (8, 8, True),
        "layer1.0.conv1": (4, 5, False),
        "layer1.0.conv2": (4, 5, False),
        "layer1.0.downsample.0": (6, 6, True),
        "layer1.1.conv1": (4, 5, False),
        "layer1.1.conv2": (8, 8, True),  # an exact name beats the pattern before it
        "layer1.1.downsample.0": (6, 6, True),
        "layer2.conv1": (4, 5, False),
        "layer2.conv2": (4, 5, False),
        "layer2.downsample.0": (6, 6, True),
    }
    assert model.layer2.add.output_quant_settings.num_bits == 7
    assert type(model.fc) is not RangeLinearQuantParamLayerWrapper
    assert model(IMAGES).shape == (4, 5)


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
def test_a_schedule_without_policies_loads_and_changes_nothing(tmp_path):
    path = tmp_path / "ptq.yaml"
    path.write_text(LAPQ_SHAPE.format(stats=stats_file(tmp_path)))
    model = net()
    kinds = [type(module) for module in model.modules()]
    scheduler = distiller.file_config(model, torch.optim.SGD(model.parameters(), 0.1), path)
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_epoch_end(epoch)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize(
    "wrong, match",
    [
        (("bits_accum: 32", "bits_accum: 0"), "bits"),
        (("weights: SYMMETRIC", "weights: SYMETRIC"), "SYMETRIC"),
        (("layer1.1.conv2:", "layer1.9.conv2:"), "layer1.9.conv2"),
        ((".*add:", ".*addd:"), "addd"),
        (("quantize_inputs: False", "quantise_inputs: False"), "quantise_inputs"),
        (("{stats}", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_mistakes_in_a_schedule_have_a_place(tmp_path, wrong, match):
    path = tmp_path / "wrong.yaml"
    path.write_text(LAPQ_SHAPE.replace(*wrong).format(stats=stats_file(tmp_path)))
    with pytest.raises(ScheduleError, match=match) as caught:
        distiller.config_component_from_file_by_class(net(), path, "PostTrainLinearQuantizer")
    assert "wrong.yaml" in str(caught.value)


# -- bad input ---------------------------------------------------------------------------------------------------------


def unchanged(model, before):
    state = model.state_dict()
    return (
        [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
        and state.keys() == before.state_dict().keys()
        and all(torch.equal(value, before.state_dict()[name]) for name, value in state.items())
    )


def nan_weights(model):
    model.fc.weight.data[0, 0] = float("nan")


def damaged(stats):
    stats["fc"]["output"]["min"], stats["fc"]["output"]["max"] = 2.0, 1.0


@pytest.mark.parametrize(
    "error, match, prepare",
    [
        (CalibrationError, "another model", lambda model, stats: PostTrainLinearQuantizer(
            model, model_activation_stats={**stats, "conv9": stats["fc"]})),
        (CalibrationError, "conv1", lambda model, stats: PostTrainLinearQuantizer(
            model, model_activation_stats={name: stats[name] for name in stats if name != "conv1"}).prepare_model(IMAGES)),
        (CalibrationError, "above max", lambda model, stats: (damaged(stats), PostTrainLinearQuantizer(
            model, model_activation_stats=stats))),
        (CalibrationError, "nothing|mapping", lambda model, stats: PostTrainLinearQuantizer(
            model, model_activation_stats={})),
        (FileNotFoundError, "does not exist", lambda model, stats: PostTrainLinearQuantizer(
            model, model_activation_stats="nowhere.yaml")),
        (ValueError, "bits", lambda model, stats: PostTrainLinearQuantizer(model, 33)),
        (ValueError, "bits", lambda model, stats: PostTrainLinearQuantizer(model, 8, 0)),
        (ValueError, "bits", lambda model, stats: PostTrainLinearQuantizer(model, 8, "8")),
        (ValueError, "1 bit", lambda model, stats: PostTrainLinearQuantizer(model, 1, mode="SYMMETRIC_RESTRICTED")),
        (ValueError, "dummy_input", lambda model, stats: PostTrainLinearQuantizer(model).prepare_model()),
        (GraphError, "does not run on dummy_input.*5 channels", lambda model, stats: PostTrainLinearQuantizer(
            model, model_activation_stats=stats).prepare_model(torch.rand(2, 5, 6, 6))),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_the_model_stays(error, match, prepare):
    model = net()
    before = copy.deepcopy(model)
    stats = collect_quant_stats(model, lambda model: model(IMAGES))
    with pytest.raises(error, match=match):
        prepare(model, stats)
    assert unchanged(model, before)


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
def test_layers_that_never_run_need_no_statistics():
    model = net()
    model.auxiliary = nn.Linear(4, 4)
    stats = collect_quant_stats(model, lambda model: model(IMAGES))
    assert "auxiliary" not in stats
    quantizer = PostTrainLinearQuantizer(model, model_activation_stats=stats)
    quantizer.prepare_model(IMAGES)
    assert isinstance(model.auxiliary, nn.Linear)
    assert "did not run" in quantizer.plan()["auxiliary"].note


def test_wrappers_refuse_training_mode_and_a_second_preparation():
    model = net()
    quantizer = PostTrainLinearQuantizer(
        model, model_activation_stats=collect_quant_stats(model, lambda model: model(IMAGES))
    )
    quantizer.prepare_model(IMAGES)
    expected = model(IMAGES)
    with pytest.raises(LifecycleError, match="eval"):
        model.train()(IMAGES)
    with pytest.raises(RuntimeError, match="once|already"):
        quantizer.prepare_model(IMAGES)
    assert torch.equal(model.eval()(IMAGES), expected)


def test_nan_in_weights_and_in_calibration():
    model = net()
    stats = collect_quant_stats(model, lambda model: model(IMAGES))
    broken = net()
    nan_weights(broken)
    before = copy.deepcopy(broken)
    with pytest.raises(ValueError, match=r"fc\.weight"):
        PostTrainLinearQuantizer(broken, model_activation_stats=stats).prepare_model(IMAGES)
    assert [type(module) for module in broken.modules()] == [type(module) for module in before.modules()]
    with pytest.raises(CalibrationError, match="output of 'fc'"):
        collect_quant_stats(broken, lambda model: model(IMAGES))
    images = IMAGES.clone()
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match="input 0 of 'conv1'"):
        collect_quant_stats(model, lambda model: model(images))
    stats["fc"]["output"]["max"] = float("nan")
    with pytest.raises(CalibrationError, match="finite"):
        PostTrainLinearQuantizer(model, model_activation_stats=stats)


def test_statistics_with_functions_survive_their_file(tmp_path):
    stats = collect_quant_stats(net(), lambda model: model(IMAGES))
    path = save_quant_stats(tmp_path / "stats", stats)
    assert load_quant_stats(path, net()).keys() == stats.keys()
    assert "layer1.0.add" in stats
    models = []
    for source in (stats, path):
        model = net()
        PostTrainLinearQuantizer(model, model_activation_stats=source).prepare_model(IMAGES)
        models.append(model)
    assert torch.equal(models[0](IMAGES), models[1](IMAGES))


# -- accumulators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, acts, wts, mode, expected",
    [
        (nn.Conv2d(16, 4, 3), 8, 8, {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC"}, 24),
        (nn.Linear(1, 1), 8, 8, "SYMMETRIC_RESTRICTED", 15),  # 127 * 127
        (nn.Linear(1, 1), 8, 8, "SYMMETRIC", 16),  # 128 * 128
        (nn.Conv2d(8, 8, 3, groups=8), 4, 4, "SYMMETRIC_RESTRICTED", 10),  # 9 * 7 * 7 = 441
        (nn.ConvTranspose2d(8, 2, 2), 8, 8, "SYMMETRIC_RESTRICTED", 20),  # 32 * 127 * 127
    ],
)
def test_bits_of_accumulators(layer, acts, wts, mode, expected):
    assert accumulator_bits(layer, acts, wts, ModuleQuantMode.parse(mode)) == expected


def test_the_plan_names_accumulators_that_can_saturate():
    stats = collect_quant_stats(net(), lambda model: model(IMAGES))
    wide = PostTrainLinearQuantizer(net(), model_activation_stats=stats)
    assert not any("saturate" in text for text in wide.plan().warnings)
    narrow = PostTrainLinearQuantizer(
        net(), bits_accum=18, model_activation_stats=stats, overrides={"fc": {"bits_bias": 32}}
    )
    (text,) = [text for text in narrow.plan().warnings if "saturate" in text]
    assert "conv1" in text and "fc" not in text and "20 bits" in text
    with pytest.warns(ScheduleWarning, match="saturate"):
        narrow.prepare_model(IMAGES)
