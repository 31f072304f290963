"""Post-training wrappers against Distiller's tables and float64 references."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distiller_ng.modules import BatchMatmul, Concat, EltwiseAdd, EltwiseMult, Matmul
from distiller_ng.quantization import ClipMode, LinearQuantMode
from distiller_ng.quantization.range_linear import (
    FPWrapper,
    ModuleQuantMode,
    RangeLinearEmbeddingWrapper,
    RangeLinearFakeQuantWrapper,
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantMatmulWrapper,
    RangeLinearQuantParamLayerWrapper,
    TensorQuantMetadata,
    get_quant_params_from_stats_dict,
    get_quant_params_from_tensor,
)

UNSIGNED, SYMMETRIC = LinearQuantMode.ASYMMETRIC_UNSIGNED, LinearQuantMode.SYMMETRIC
RESTRICTED = LinearQuantMode.SYMMETRIC_RESTRICTED
NONE, AVG = ClipMode.NONE, ClipMode.AVG


def marked(values, mode, stats=None, clip=NONE, bits=8):
    """A tensor that carries a grid, as a wrapper before would have made it."""
    if stats is None:
        scale, zero_point = get_quant_params_from_tensor(values, bits, mode, clip)
    else:
        scale, zero_point = get_quant_params_from_stats_dict(stats, bits, mode, clip)
    low, high = (0, 2**bits - 1) if mode is UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values.quant_metadata = TensorQuantMetadata(scale, zero_point, low, high)
    return values


CONV_STATS = {
    "inputs": {0: {"min": -15, "max": 10, "avg_min": -11, "avg_max": 7.5}},
    "output": {"min": -3.5, "max": 14.5, "avg_min": -1.025, "avg_max": 8.5},
}
CONV_TABLE = [  # clip, per channel, statistics, image 0: filter 0, filter 1; image 1: filter 0, filter 1
    (NONE, False, None, [-3.648135333, -2.14596196, 0.858384784, 2.432090222, 0.214596196, 0.500724457, 0.715320653,
                         0.786852719, 12.51811144, 13.01883589, 14.0918168, 14.59254133, 1.359109242, 1.645237503,
                         1.573705438, 1.645237503]),
    (AVG, False, None, [-1.089218234, -1.089218234, 1.055180164, 2.518817167, 0.238266489, 0.476532978, 0.680761396,
                        0.782875606, 7.59048957, 7.59048957, 7.59048957, 7.59048957, 1.123256304, 1.259408583,
                        1.089218234, 1.089218234]),
    (NONE, True, None, [-3.648135333, -2.14596196, 0.858384784, 2.432090222, 0.214596196, 0.429192392, 0.715320653,
                        0.858384784, 12.51811144, 13.01883589, 14.09181687, 14.59254133, 1.430641307, 1.502173372,
                        1.573705438, 1.645237503]),
    (AVG, True, None, [-1.089768056, -1.089768056, 1.055712804, 2.52008863, 0.238386762, 0.408663021, 0.681105035,
                       0.817326042, 7.59432114, 7.59432114, 7.59432114, 7.59432114, 1.191933811, 1.15787856,
                       1.123823308, 1.089768056]),
    (NONE, False, CONV_STATS, [-3.529411765, -2.117647059, 0.917647059, 2.4, 0.211764706, 0.494117647, 0.705882353,
                               0.776470588, 12.56470588, 12.98823529, 14.04705882, 14.47058824, 1.341176471,
                               1.623529412, 1.552941176, 1.623529412]),
    (AVG, False, CONV_STATS, [-1.008529412, -1.008529412, 1.045882353, 2.502647059, 0.224117647, 0.485588235,
                              0.672352941, 0.784411765, 8.516470588, 8.516470588, 8.516470588, 8.516470588,
                              1.120588235, 1.27, 1.120588235, 1.083235294]),
    (NONE, True, CONV_STATS, [-3.529411765, -2.117647059, 0.917647059, 2.4, 0.211764706, 0.423529412, 0.705882353,
                              0.847058824, 12.56470588, 12.98823529, 14.04705882, 14.47058824, 1.482352941,
                              1.482352941, 1.623529412, 1.623529412]),
    (AVG, True, CONV_STATS, [-1.008529412, -1.008529412, 1.045882353, 2.502647059, 0.261470588, 0.410882353,
                             0.672352941, 0.821764706, 8.516470588, 8.516470588, 8.516470588, 8.516470588,
                             1.195294118, 1.157941176, 1.120588235, 1.083235294]),
]  # fmt: skip


def conv_case():
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    layer.weight.data = torch.tensor(
        [[[[-1, -0.5, 0], [0.5, 1, 1.5], [2, 2.5, 3]]], [[[-0.3, -0.25, -0.2], [-0.15, -0.1, -0.05], [0, 0.05, 0.1]]]]
    )
    return layer, torch.tensor([[[[-7.0, 5], [2, -3]]], [[[-15.0, 10], [-1, 5]]]])


@pytest.mark.parametrize("clip, per_channel, stats, expected", CONV_TABLE)
def test_convolution(clip, per_channel, stats, expected):
    layer, images = conv_case()
    wrapper = RangeLinearQuantParamLayerWrapper(
        layer, 8, 8, mode=UNSIGNED, clip_acts=clip, per_channel_wts=per_channel, activation_stats=stats
    )
    images = marked(images, UNSIGNED, stats and stats["inputs"][0], clip)
    with pytest.raises(RuntimeError, match="eval"):
        wrapper(images)
    output = wrapper.eval()(images)
    torch.testing.assert_close(output, torch.tensor(expected).reshape(2, 2, 2, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mode, per_channel, expected",
    [
        (UNSIGNED, False, [7.686200692, 0.241135708, 0.783691051]),
        (UNSIGNED, True, [7.698823529, 0.241531719, 0.784978085]),
        (RESTRICTED, False, [7.728687457, 0.243423227, 0.791125488]),
        (RESTRICTED, True, [7.728687457, 0.243423227, 0.791125488]),
    ],
)
def test_linear(mode, per_channel, expected):
    layer = nn.Linear(4, 3)
    layer.weight.data = torch.tensor([[-1, 0.5, 0, 0.5], [-0.05, 0, 0.05, 0.1], [0.3, 0.6, -0.1, -0.2]])
    layer.bias.data = torch.tensor([-0.3, 0.1, -0.5])
    wrapper = RangeLinearQuantParamLayerWrapper(layer, 8, 8, mode=mode, per_channel_wts=per_channel).eval()
    output = wrapper(marked(torch.tensor([[-7.0, 5, 2, -3]]), mode))
    torch.testing.assert_close(output, torch.tensor([expected]), rtol=1e-4, atol=1e-5)


INPUT_STATS = {
    0: {"min": -20, "max": 31, "avg_min": -15, "avg_max": 23.5},
    1: {"min": -100, "max": 80, "avg_min": -53.5, "avg_max": 45},
}
CONCAT = {"inputs": INPUT_STATS, "output": {"min": -100, "max": 80, "avg_min": -55, "avg_max": 55.5}}
MULT = {"inputs": INPUT_STATS, "output": {"min": -1600, "max": 800, "avg_min": -800, "avg_max": 493}}
ADD = {"inputs": INPUT_STATS, "output": {"min": -108, "max": 66, "avg_min": -60.5, "avg_max": 51.5}}
COMBINING_TABLE = [
    (UNSIGNED, NONE, "concat", [-9.882352941, 31.05882353, 4.941176471, 9.882352941, 0.705882353, 7.764705882,
                                -2.823529412, 7.058823529, -2.823529412, 5.647058824, 0, 7.764705882, 4.235294118,
                                9.882352941, -7.058823529, 0.705882353, -7.764705882, 16.23529412, -14.82352941, -12,
                                -19.76470588, 12.70588235, 7.764705882, 0, -100.2352941, 50.11764706, 5.647058824, 12,
                                79.76470588, -29.64705882, -16.23529412, 2.823529412]),
    (UNSIGNED, AVG, "concat", [-9.966666667, 23.4, 4.766666667, 9.966666667, 0.866666667, 7.8, -3.033333333,
                               6.933333333, -3.033333333, 6.066666667, 0, 8.233333333, 3.9, 9.966666667, -6.933333333,
                               1.3, -7.8, 16.03333333, -14.73333333, -12.13333333, -14.73333333, 13, 7.8, 0,
                               -53.73333333, 44.63333333, 6.066666667, 12.13333333, 44.63333333, -30.33333333,
                               -16.03333333, 3.033333333]),
    (RESTRICTED, NONE, "concat", [-10.23622047, 30.70866142, 4.724409449, 10.23622047, 0.787401575, 7.874015748,
                                 -3.149606299, 7.086614173, -3.149606299, 6.299212598, 0, 7.874015748, 3.937007874,
                                 10.23622047, -7.086614173, 0.787401575, -7.874015748, 15.7480315, -14.96062992,
                                 -11.81102362, -19.68503937, 12.5984252, 7.874015748, 0, -100, 50.39370079,
                                 6.299212598, 11.81102362, 80.31496063, -29.92125984, -15.7480315, 3.149606299]),
    (RESTRICTED, AVG, "concat", [-10.0511811, 23.5984252, 4.807086614, 10.0511811, 0.874015748, 7.866141732,
                                -3.059055118, 6.992125984, -3.059055118, 5.681102362, 0, 7.866141732, 3.933070866,
                                10.0511811, -6.992125984, 0.874015748, -7.866141732, 15.73228346, -14.85826772,
                                -12.23622047, -20.1023622, 13.11023622, 7.866141732, 0, -53.7519685, 50.25590551,
                                5.681102362, 11.7992126, 53.31496063, -29.71653543, -16.16929134, 3.059055118]),
    (UNSIGNED, NONE, "mult", [28.23529412, 178.8235294, 0, 75.29411765, 0, 75.29411765, 18.82352941, 9.411764706, 800,
                              800, -84.70588235, -141.1764706, -1590.588235, -385.8823529, -131.7647059, 0]),
    (UNSIGNED, AVG, "mult", [30.42352941, 147.0470588, 0, 81.12941176, 5.070588235, 81.12941176, 20.28235294,
                             10.14117647, 431, 491.8470588, -91.27058824, -141.9764706, -669.3176471, -390.4352941,
                             -126.7647059, 0]),
    (RESTRICTED, NONE, "mult", [37.79527559, 201.5748031, 0, 75.59055118, 0, 88.18897638, 25.19685039, 0, 806.2992126,
                               806.2992126, -88.18897638, -138.5826772, -1600, -390.5511811, -125.984252, 0]),
    (RESTRICTED, AVG, "mult", [31.49606299, 138.5826772, 0, 81.88976378, 6.299212598, 81.88976378, 18.8976378,
                              6.299212598, 428.3464567, 800, -88.18897638, -144.8818898, -800, -390.5511811,
                              -125.984252, 0]),
    (UNSIGNED, NONE, "add", [-12.96470588, 36.16470588, 4.776470588, 17.74117647, 4.776470588, 17.74117647,
                             -9.552941176, 7.505882353, -107.8117647, 65.50588235, -9.552941176, 0, 60.04705882,
                             -16.37647059, -8.188235294, 2.729411765]),
    (UNSIGNED, AVG, "add", [-13.17647059, 29.86666667, 4.831372549, 18.00784314, 4.831372549, 18.00784314,
                            -10.10196078, 8.345098039, -60.61176471, 51.38823529, -8.784313725, 0, 29.86666667,
                            -17.12941176, -7.905882353, 3.074509804]),
    (RESTRICTED, NONE, "add", [-13.60629921, 36.56692913, 5.102362205, 17.85826772, 5.102362205, 17.85826772,
                              -9.354330709, 7.653543307, -108, 66.33070866, -9.354330709, 0, 59.52755906, -17.00787402,
                              -8.503937008, 3.401574803]),
    (RESTRICTED, AVG, "add", [-12.86220472, 29.05905512, 4.763779528, 18.1023622, 4.763779528, 18.1023622, -10.00393701,
                             8.098425197, -60.5, 60.5, -9.051181102, 0, 33.34645669, -17.1496063, -8.098425197,
                             2.858267717]),
]  # fmt: skip
KINDS = {
    "concat": (RangeLinearQuantConcatWrapper, lambda: Concat(dim=1), CONCAT),
    "mult": (RangeLinearQuantEltwiseMultWrapper, EltwiseMult, MULT),
    "add": (RangeLinearQuantEltwiseAddWrapper, EltwiseAdd, ADD),
}


def two_inputs():
    first = [[[[-10, 31], [5, 10]], [[1, 8], [-3, 7]]], [[[-8, 16], [-15, -12]], [[-20, 13], [8, 0]]]]
    second = [[[[-3, 6], [0, 8]], [[4, 10], [-7, 1]]], [[[-100, 50], [6, 12]], [[80, -30], [-16, 3]]]]
    return torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)


@pytest.mark.parametrize("mode, clip, kind, expected", COMBINING_TABLE)
def test_combining(mode, clip, kind, expected):
    wrapper_class, layer, stats = KINDS[kind]
    inputs = [marked(x, mode, INPUT_STATS[i], clip) for i, x in enumerate(two_inputs())]
    output = wrapper_class(layer(), 8, mode, clip, stats).eval()(*inputs)
    torch.testing.assert_close(output, torch.tensor(expected).reshape(output.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_combining_needs_its_module_and_statistics(kind):
    wrapper_class, layer, stats = KINDS[kind]
    with pytest.raises(ValueError, match="wraps modules of type"):
        wrapper_class(nn.Module(), 8, SYMMETRIC, NONE, stats)
    with pytest.raises(NotImplementedError, match="statistics"):
        wrapper_class(layer(), 8, SYMMETRIC, NONE, activation_stats=None)


def test_matmul_dynamic_in_float64():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    for module in (Matmul(), BatchMatmul()):
        output = RangeLinearQuantMatmulWrapper(module, 8, mode=RESTRICTED, inputs_quant_auto_fallback=True).eval()(a, b)

        def grid(x):
            scale = 127 / x.abs().max()
            return (x * scale).round().clamp(-128, 127) / scale

        expected = grid(grid(a) @ grid(b))
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), (2, 4, 6, 6)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
        (nn.Linear(5, 7), (2, 3, 5)),
    ],
)
def test_layers_stay_close_to_floating_point(layer, shape, per_channel):
    torch.manual_seed(1)
    images = torch.randn(shape)
    expected = layer(images).detach()
    output = RangeLinearQuantParamLayerWrapper(
        copy.deepcopy(layer), 12, 12, mode=UNSIGNED, per_channel_wts=per_channel, inputs_quant_auto_fallback=True
    ).eval()(images)
    assert output.shape == expected.shape
    assert (output - expected).abs().max() < 0.004 * expected.abs().max()


def test_bias_lies_on_the_accumulators_grid():
    layer = nn.Linear(1, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0]]), torch.tensor([0.3])
    stats = {"inputs": {0: {"min": -1, "max": 1}}, "output": {"min": -2, "max": 2}}
    wrapper = RangeLinearQuantParamLayerWrapper(
        layer, 4, 4, num_bits_accum=5, activation_stats=stats, inputs_quant_auto_fallback=True
    ).eval()
    # Scales 7.5 * 7.5 = 56.25: b_q = round(16.875) = 17, limited to 5 bits: 15. 15 * 3.75 / 56.25 = 1, 1 / 3.75.
    assert wrapper(torch.zeros(1, 1)).item() == pytest.approx(1 / 3.75)


def test_inputs_conflict_missing_override_and_fallback():
    layer, images = conv_case()
    stats = CONV_STATS
    with pytest.raises(RuntimeError, match="not quantized"):
        RangeLinearQuantParamLayerWrapper(copy.deepcopy(layer), 8, 8, activation_stats=stats).eval()(images)
    kept = copy.deepcopy(layer)
    overridden = RangeLinearQuantParamLayerWrapper(
        kept, 8, 8, activation_stats=stats, input_overrides={0: {"from_output": True}}
    ).eval()
    automatic = RangeLinearQuantParamLayerWrapper(
        copy.deepcopy(layer), 8, 8, activation_stats=stats, inputs_quant_auto_fallback=True
    ).eval()
    assert torch.equal(overridden(images), automatic(images))
    with pytest.raises(RuntimeError, match="CONFLICT"):
        overridden(marked(images.clone(), SYMMETRIC))
    assert not hasattr(images, "quant_metadata")


def test_input_overrides_refuse_other_keys():
    with pytest.raises(ValueError, match="bits"):
        RangeLinearQuantParamLayerWrapper(conv_case()[0], 8, 8, input_overrides={0: {"bits": 4}})
    with pytest.raises(ValueError, match="number of an input"):
        RangeLinearQuantParamLayerWrapper(conv_case()[0], 8, 8, input_overrides={"x": {"from_output": True}})


def test_metadata_travels_until_the_tensor_is_changed():
    layer, images = conv_case()
    wrapper = RangeLinearQuantParamLayerWrapper(layer, 8, 8, inputs_quant_auto_fallback=True).eval()
    output = wrapper(images)
    second = RangeLinearQuantParamLayerWrapper(nn.Conv2d(2, 2, 1), 8, 8).eval()
    assert second(output).shape == (2, 2, 2, 2)
    with pytest.raises(RuntimeError, match="not quantized"):
        second(output.add_(1))


def test_tied_weights_are_not_written_to():
    embedding, decoder = nn.Embedding(5, 3), nn.Linear(3, 5)
    decoder.weight = embedding.weight
    before = embedding.weight.detach().clone()
    RangeLinearQuantParamLayerWrapper(decoder, 8, 8)
    assert torch.equal(embedding.weight, before)


def test_weights_only_is_the_fake_quantized_weight_exactly():
    layer, images = conv_case()
    scale, zero_point = get_quant_params_from_tensor(layer.weight, 4, UNSIGNED, per_channel=True)
    expected = ((layer.weight * scale - zero_point).round().clamp(0, 15) + zero_point) / scale
    wrapper = RangeLinearQuantParamLayerWrapper(layer, None, 4, mode=UNSIGNED, per_channel_wts=True).eval()
    assert torch.equal(wrapper.wrapped_module.weight, expected)
    torch.testing.assert_close(wrapper(images), nn.functional.conv2d(images, expected, padding=1))


def test_changed_scales_requantize_the_weight():
    layer = nn.Linear(1, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0], [0.3]])
    stats = {"inputs": {0: {"min": -1, "max": 1}}, "output": {"min": -1, "max": 1}}
    wrapper = RangeLinearQuantParamLayerWrapper(
        layer, 8, 8, activation_stats=stats, inputs_quant_auto_fallback=True, save_fp_weights=True
    ).eval()
    assert set(dict(wrapper.named_linear_quant_params())) == {
        "output_scale", "output_zero_point", "w_scale", "w_zero_point"
    }  # fmt: skip
    assert [name for name, _ in wrapper.named_linear_quant_params(filter=True)] == ["output_scale", "w_scale"]
    wrapper.set_linear_quant_param("w_scale", 10.0)
    wrapper(torch.ones(1, 1))
    assert wrapper.wrapped_module.weight.tolist() == [[10.0], [3.0]]
    wrapper.set_linear_quant_param("w_scale", 100.0)
    wrapper(torch.ones(1, 1))
    assert wrapper.wrapped_module.weight.tolist() == [[100.0], [30.0]]
    wrapper.set_clipping("output_clipping", -2.0, 2.0)
    assert wrapper.output_scale.item() == 63.75
    for bad in (0.0, float("nan"), -1):
        with pytest.raises(ValueError, match="positive"):
            wrapper.set_linear_quant_param("w_scale", bad)
    with pytest.raises(ValueError, match="output_scale"):
        wrapper.set_linear_quant_param("output_scal", 1.0)


def test_fused_relu_holds_in_every_mode():
    for mode in LinearQuantMode:
        stats = {"inputs": {0: {"min": -1, "max": 1}}, "output": {"min": 0, "max": 1}}
        layer = nn.Linear(1, 1, bias=False)
        layer.weight.data = torch.tensor([[1.0]])
        wrapper = RangeLinearQuantParamLayerWrapper(
            layer, 8, 8, mode=mode, activation_stats=stats, inputs_quant_auto_fallback=True
        ).eval()
        wrapper.fuses_relu = True
        output = wrapper(torch.tensor([[-0.5], [0.5]]))
        assert output[0].item() == 0
        assert output[1].item() == pytest.approx(0.5, abs=0.02)


def test_fake_quantization_of_outputs():
    stats = {"output": {"min": 0, "max": 3}}
    wrapper = RangeLinearFakeQuantWrapper(nn.Sigmoid(), 2, UNSIGNED, activation_stats=stats)
    with pytest.raises(RuntimeError, match="eval"):
        wrapper(torch.zeros(1))
    identity = RangeLinearFakeQuantWrapper(nn.Sigmoid(), 2, UNSIGNED, activation_stats=stats, make_identity=True).eval()
    assert identity(torch.tensor([1.2, 7.0, -1.0])).tolist() == [1.0, 3.0, 0.0]
    assert identity(torch.tensor([1, 2])).tolist() == [1, 2]
    half = RangeLinearFakeQuantWrapper(nn.Linear(2, 1), 8, fpq_module=16).eval()
    assert half.wrapped_module.wrapped_module.weight.dtype == torch.float16
    assert half(torch.ones(1, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="16, 32 or 64"):
        RangeLinearFakeQuantWrapper(nn.ReLU(), 8, fpq_module=8)


def test_floating_point_wrapper_looks_into_structures():
    class Pair(nn.Module):
        def forward(self, x, index):
            return {"y": [x, index]}

    result = FPWrapper(Pair(), 64)(torch.ones(1), torch.tensor([3]))["y"]
    assert [value.dtype for value in result] == [torch.float32, torch.int64]
    assert FPWrapper(Pair(), 64, return_fp32=False)(torch.ones(1), 3)["y"][0].dtype == torch.float64


def test_embedding():
    embedding = nn.Embedding(2, 2)
    embedding.weight.data = torch.tensor([[-4.0, 1.01], [2.0, 4.0]])
    wrapper = RangeLinearEmbeddingWrapper(embedding, 8, save_fp_weights=True).eval()
    output = wrapper(torch.tensor([0]))
    assert wrapper.w_scale.item() == 31.875
    torch.testing.assert_close(output, torch.tensor([[-128 / 31.875, 32 / 31.875]]))
    assert output.quant_metadata.scale.item() == 31.875
    wrapper.set_linear_quant_param("w_scale", torch.tensor(10.0))
    torch.testing.assert_close(wrapper(torch.tensor([0])), torch.tensor([[-4.0, 1.0]]))
    with pytest.raises(ValueError, match="Embedding"):
        RangeLinearEmbeddingWrapper(nn.Linear(1, 1), 8)


@pytest.mark.parametrize(
    "given",
    ["SYMMETRIC", {"activations": "ASYMMETRIC_UNSIGNED", "weights": "symmetric"}, ModuleQuantMode(UNSIGNED, SYMMETRIC)],
)
def test_modes(given):
    wrapper = RangeLinearQuantParamLayerWrapper(nn.Linear(2, 2), 8, 8, mode=given)
    assert wrapper.wts_quant_settings.quant_mode is SYMMETRIC
    assert wrapper.output_quant_settings.quant_mode is (SYMMETRIC if isinstance(given, str) else UNSIGNED)


@pytest.mark.parametrize("given", ["symetric", {"acts": "SYMMETRIC"}, 3])
def test_wrong_modes(given):
    with pytest.raises(ValueError, match="mode"):
        RangeLinearQuantParamLayerWrapper(nn.Linear(2, 2), 8, 8, mode=given)


def test_state_dict_goes_round():
    torch.manual_seed(0)
    stats = {"inputs": {0: {"min": -1, "max": 1}}, "output": {"min": -1, "max": 1}}
    images = torch.rand(3, 4)

    def made():
        return RangeLinearQuantParamLayerWrapper(
            nn.Linear(4, 2), 8, 8, activation_stats=stats, inputs_quant_auto_fallback=True
        ).eval()

    first, second = made(), made()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_half_precision_inputs():
    torch.manual_seed(0)
    layer = nn.Linear(64, 8).to(torch.bfloat16)
    images = torch.randn(2, 64, dtype=torch.bfloat16)
    expected = layer(images)
    output = RangeLinearQuantParamLayerWrapper(layer, 8, 8, inputs_quant_auto_fallback=True).eval()(images)
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().max() < 0.05


# -- the formulas, in float64 ------------------------------------------------------------------------------------------

MODES = ["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"]


def reference_grid(low, high, bits, mode):
    """Scale, zero point and integer range by Distiller's definitions."""
    largest = max(abs(low), abs(high))
    if mode == "SYMMETRIC":
        return (2**bits - 1) / 2 / largest, 0.0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if mode == "SYMMETRIC_RESTRICTED":
        return (2 ** (bits - 1) - 1) / largest, 0.0, -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (2**bits - 1) / (high - low)
    shift = 2 ** (bits - 1) if mode == "ASYMMETRIC_SIGNED" else 0
    return scale, float(np.round(scale * low)) + shift, -shift, 2**bits - 1 - shift


def on(values, grid):
    scale, zero, low, high = grid
    return np.clip(np.round(scale * values - zero), low, high)


def back(integers, grid):
    return (integers + grid[1]) / grid[0]


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("mode", MODES)
def test_formulas_in_every_mode(mode, bits):
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(3, 5)), rng.normal(size=3), rng.normal(size=(7, 5)) + 0.3
    other = rng.normal(size=(7, 3)) * 2
    expected = x @ weight.T + bias

    def entry(values):
        return {"min": float(values.min()), "max": float(values.max())}

    grids = {
        name: reference_grid(float(values.min()), float(values.max()), bits, mode)
        for name, values in {"x": x, "w": weight, "y": expected, "o": other, "sum": expected + other,
                             "product": expected * other}.items()
    }  # fmt: skip
    layer = nn.Linear(5, 3).double()
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    stats = {"inputs": {0: entry(x)}, "output": entry(expected)}
    linear = RangeLinearQuantParamLayerWrapper(
        layer, bits, bits, mode=mode, activation_stats=stats, inputs_quant_auto_fallback=True
    ).eval()
    accumulator = (on(x, grids["x"]) + grids["x"][1]) @ (on(weight, grids["w"]) + grids["w"][1]).T
    s = grids["x"][0] * grids["w"][0]
    y_q = on((accumulator + np.round(bias * s)) / s, grids["y"])
    found = linear(torch.tensor(x))
    torch.testing.assert_close(found, torch.tensor(back(y_q, grids["y"])), rtol=1e-4, atol=1e-5)

    operands = {"inputs": {0: entry(expected), 1: entry(other)}}
    add = RangeLinearQuantEltwiseAddWrapper(
        EltwiseAdd(), bits, mode, activation_stats={**operands, "output": entry(expected + other)},
        inputs_quant_auto_fallback=True,
    ).eval()  # fmt: skip
    y, o = back(y_q, grids["y"]), back(on(other, grids["o"]), grids["o"])
    both = np.round(grids["sum"][0] * y) + np.round(grids["sum"][0] * o)
    sums = back(np.clip(both - grids["sum"][1], *grids["sum"][2:]), grids["sum"])
    torch.testing.assert_close(add(found, torch.tensor(other)), torch.tensor(sums), rtol=1e-4, atol=1e-5)

    mult = RangeLinearQuantEltwiseMultWrapper(
        EltwiseMult(), bits, mode, activation_stats={**operands, "output": entry(expected * other)},
        inputs_quant_auto_fallback=True,
    ).eval()  # fmt: skip
    products = back(on(y * o, grids["product"]), grids["product"])
    close = torch.isclose(mult(found, torch.tensor(other)), torch.tensor(products), rtol=1e-4, atol=1e-5)
    assert close.double().mean() > 0.95  # halves may be rounded either way
