"""Scale and zero point of tensors and of statistics: every mode and clipping against q_utils on the range by hand."""

import math

import pytest
import torch

from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning
from distiller_ng.ops.clipping import CLIPPINGS, clipping_named
from distiller_ng.quantization import q_utils as qu
from distiller_ng.quantization.quant_params import (
    ClipMode,
    clipping_of,
    get_quant_params_from_stats_dict,
    get_quant_params_from_tensor,
)

MODES = list(qu.LinearQuantMode)
UNSIGNED, SYMMETRIC = qu.LinearQuantMode.ASYMMETRIC_UNSIGNED, qu.LinearQuantMode.SYMMETRIC
SMALL = torch.tensor([[-2.0, 10.0], [0.0, 1.0]])
STATS = {"min": -2.0, "max": 10.0, "avg_min": -1.0, "avg_max": 4.0, "mean": 1.0, "std": 2.0, "b": 1.5}


def test_known_values():
    scale, zero_point = get_quant_params_from_tensor(SMALL, 8, UNSIGNED)
    assert scale.tolist() == [21.25] and zero_point.tolist() == [-42]
    scale, zero_point = get_quant_params_from_tensor(SMALL, 8, "ASYMMETRIC_UNSIGNED", per_channel=True)
    assert scale.tolist() == [[21.25], [255.0]] and zero_point.tolist() == [[-42], [0]]
    scale, _ = get_quant_params_from_tensor(SMALL, 8, UNSIGNED, per_channel=True, channel_dim=1)
    assert scale.shape == (1, 2) and scale.tolist() == [[127.5, 25.5]]
    scale, zero_point = get_quant_params_from_stats_dict(STATS, 8, SYMMETRIC, ClipMode.AVG)
    assert scale.tolist() == [31.875] and zero_point.tolist() == [0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("clip", "options", "low", "high"),
    [
        (ClipMode.NONE, {}, -2.0, 10.0),
        ("avg", {}, -1.0, 4.0),
        (ClipMode.N_STD, {"num_stds": 2}, -2.0, 5.0),
        ("GAUSS", {}, -1.0, -1.0 + 2 * 2 * 3.92),
        (ClipMode.LAPLACE, {"half_range": True}, -1.0, -1.0 + 1.5 * 11.16),
    ],
)
def test_statistics(mode, clip, options, low, high):
    scale, zero_point = get_quant_params_from_stats_dict(STATS, 8, mode, clip, **options)
    if qu.is_linear_quant_mode_symmetric(mode):
        by_aciq = {"GAUSS": 1.0 + 2 * 3.92, ClipMode.LAPLACE: 1.0 + 1.5 * 9.89}.get(clip)
        restricted = mode is qu.LinearQuantMode.SYMMETRIC_RESTRICTED
        expected = qu.symmetric_linear_quantization_params(8, by_aciq or max(-low, high), restricted)
    else:
        signed = mode is qu.LinearQuantMode.ASYMMETRIC_SIGNED
        expected = qu.asymmetric_linear_quantization_params(8, low, high, signed=signed)
    assert (scale.item(), zero_point.item()) == pytest.approx(expected)
    assert scale.shape == zero_point.shape == (1,)


@pytest.mark.parametrize("name", CLIPPINGS.names())
@pytest.mark.parametrize("mode", MODES)
def test_tensors(name, mode):
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    scale, zero_point = get_quant_params_from_tensor(values, 4, mode, name, num_stds=2.0)
    low, high = clipping_named(name, n_stds=2.0).of_tensor(values, 4, mode)
    if mode.is_symmetric:
        expected = qu.symmetric_linear_quantization_params(4, high, mode is qu.LinearQuantMode.SYMMETRIC_RESTRICTED)
    else:
        expected = qu.asymmetric_linear_quantization_params(4, low, high, signed=mode.is_signed)
    assert torch.equal(scale, expected[0]) and torch.equal(zero_point, expected[1])
    assert torch.equal(get_quant_params_from_tensor(values, 4, mode, clipping_named(name, n_stds=2.0))[0], scale)


def test_approximated_scales():
    scale, _ = get_quant_params_from_tensor(SMALL, 8, UNSIGNED, per_channel=True, scale_approx_mult_bits=4)
    assert scale.tolist() == [[20.0], [224.0]]
    scale, _ = get_quant_params_from_stats_dict(STATS, 8, SYMMETRIC, scale_approx_mult_bits=8)
    assert scale.item() == qu.approx_scale_as_mult_and_shift(12.75, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": "AVERAGE"}, ArgumentError, "AVERAGE"),
        ({"clip": ClipMode.N_STD}, ArgumentError, "clip_n_stds"),
        ({"clip": ClipMode.N_STD, "num_stds": 0}, ArgumentError, "clip_n_stds"),
        ({"mode": "SYM"}, ArgumentError, "mode"),
        ({"num_bits": 0}, ArgumentError, "bits"),
    ],
)
def test_refusals(options, error, message):
    arguments = {"num_bits": 8, "mode": SYMMETRIC, **options}
    with pytest.raises(error, match=message):
        get_quant_params_from_tensor(SMALL, **arguments)
    with pytest.raises(error, match=message):
        get_quant_params_from_stats_dict(STATS, **arguments)


def test_refused_tensors():
    for tensor, options in (
        (torch.ones(3), {"per_channel": True}),
        (SMALL, {"per_channel": True, "clip": "AVG"}),
        (SMALL, {"per_channel": True, "channel_dim": 2}),
        (torch.zeros(0), {}),
        (torch.tensor([1.0, math.nan]), {}),
    ):
        with pytest.raises(ArgumentError):
            get_quant_params_from_tensor(tensor, 8, SYMMETRIC, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max": math.nan}, "NaN"),
        ({"min": -math.inf}, "NaN or infinity"),
        ({"min": 11.0}, "minimum above"),
        ({"max": None}, "'max'"),
    ],
)
def test_refused_statistics(change, message):
    with pytest.raises(CalibrationError, match=message):
        get_quant_params_from_stats_dict({**STATS, **change}, 8, UNSIGNED)


def test_half_range_without_effect():
    with pytest.warns(ScheduleWarning, match="half_range"):
        clipping_of(ClipMode.AVG, half_range=True)
    assert [mode.value for mode in ClipMode][:5] == [0, 1, 2, 3, 4]
