"""Clippings: closed forms against numeric optima, searches against brute force, statistics against tensors."""

import numpy as np
import pytest
import torch

from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning
from distiller_ng.ops.clipping import (
    CLIPPINGS,
    Clipping,
    aciq_alpha,
    clipping_named,
    kl_range,
    mse_range,
    quantization_error,
)
from distiller_ng.ops.clipping.aciq_alpha import _TABLES, solve_alpha
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode

MODES = list(LinearQuantMode)
SYMMETRIC, UNSIGNED = LinearQuantMode.SYMMETRIC, LinearQuantMode.ASYMMETRIC_UNSIGNED
NORMAL = torch.randn(20000, generator=torch.Generator().manual_seed(0))


def numbers(bounds):
    return tuple(float(bound) for bound in bounds)


def test_alphas_are_the_optima_of_their_equation():
    for (distribution, half_range), table in _TABLES.items():
        for bits, alpha in table.items():
            assert aciq_alpha(bits, distribution, half_range=half_range) == alpha
            assert solve_alpha(bits + half_range, distribution) == pytest.approx(alpha, abs=0.02)
    assert aciq_alpha(10, "laplace") == pytest.approx(12.44, abs=0.01)
    assert aciq_alpha(16, "gauss") > aciq_alpha(12, "gauss") > 4.2
    with pytest.raises(ArgumentError, match="distribution"):
        aciq_alpha(8, "uniform")


def test_average():
    samples = torch.tensor([[-1.0, 3.0], [0.0, 5.0]])
    clipping = clipping_named("avg")
    assert numbers(clipping.of_tensor(samples, 8, UNSIGNED)) == (-0.5, 4.0)
    assert numbers(clipping.of_tensor(samples, 8, SYMMETRIC)) == (-4.0, 4.0)
    assert numbers(clipping.of_stats({"avg_min": -0.5, "avg_max": 4.0}, 8, SYMMETRIC)) == (-4.0, 4.0)
    with pytest.raises(ArgumentError, match="per channel"):
        clipping.of_tensor(samples, 8, UNSIGNED, axis=0)


def test_standard_deviations():
    clipping = clipping_named("N_STD", n_stds=2)
    stats = {"min": -9.0, "max": 4.0, "mean": 1.0, "std": 2.0}
    assert numbers(clipping.of_stats(stats, 8, UNSIGNED)) == (-3.0, 4.0)
    assert numbers(clipping.of_stats(stats, 8, SYMMETRIC)) == (-4.0, 4.0)
    low, high = clipping.of_tensor(NORMAL.reshape(4, -1), 8, UNSIGNED, axis=0)
    rows = NORMAL.reshape(4, -1)
    torch.testing.assert_close(low, rows.mean(1) - 2 * rows.std(1))
    torch.testing.assert_close(high, rows.mean(1) + 2 * rows.std(1))
    assert numbers(clipping.of_tensor(torch.tensor([3.0]), 8, UNSIGNED)) == (3.0, 3.0)
    for wrong in (None, 0, -1, float("nan"), float("inf"), "3", True):
        with pytest.raises(ArgumentError, match="clip_n_stds") as caught:
            clipping_named("N_STD", n_stds=wrong)
        assert caught.value.argument == ("clip_n_stds",)


def test_aciq_from_statistics():
    stats = {"mean": 0.5, "b": 2.0, "std": 3.0, "avg_min": -1.0}
    assert numbers(clipping_named("LAPLACE").of_stats(stats, 8, SYMMETRIC)) == pytest.approx((-20.28, 20.28))
    assert numbers(clipping_named("GAUSS").of_stats(stats, 8, UNSIGNED)) == pytest.approx((-1.0, 22.52))
    half = clipping_named("LAPLACE", half_range=True)
    assert numbers(half.of_stats(stats, 4, UNSIGNED)) == pytest.approx((-1.0, 11.4))
    assert numbers(half.of_stats(stats, 8, SYMMETRIC)) == pytest.approx((-20.28, 20.28))


@pytest.mark.parametrize("name", ["NONE", "GAUSS", "LAPLACE", "MSE", "KL"])
@pytest.mark.parametrize("mode", [SYMMETRIC, UNSIGNED])
def test_each_channel_is_a_tensor_of_its_own(name, mode):
    weight = NORMAL[:600].reshape(3, 50, 4) * torch.tensor([1.0, 5.0, 0.1]).reshape(3, 1, 1)
    clipping = clipping_named(name)
    low, high = clipping.of_tensor(weight, 8, mode, axis=0)
    assert low.shape == high.shape == (3,)
    for index in range(3):
        alone = clipping.of_tensor(weight[index].reshape(1, -1), 8, mode)
        torch.testing.assert_close((low[index], high[index]), alone)
    transposed = clipping.of_tensor(weight.transpose(0, 1), 8, mode, axis=1)
    torch.testing.assert_close((low, high), transposed)


def brute_force(values, bits):
    """The best symmetric clip of a fine grid, in float64 numpy."""
    values = values.double().numpy()
    best = (np.inf, 0.0)
    for clip in np.linspace(0.05, 1, 400) * np.abs(values).max():
        step = 2 * clip / (2**bits - 1)
        integers = np.clip(np.round(values / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        best = min(best, (np.mean((integers * step - values) ** 2), clip))
    return best


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_finds_what_brute_force_finds(bits):
    error, _ = brute_force(NORMAL, bits)
    low, high = mse_range(NORMAL, bits, SYMMETRIC)
    assert low == -high
    assert quantization_error(NORMAL, low, high, bits, SYMMETRIC) <= error * 1.01
    from_histogram = mse_range(Histogram.of_tensor(NORMAL, 2048), bits, SYMMETRIC)
    assert quantization_error(NORMAL, *from_histogram, bits, SYMMETRIC) <= error * 1.02


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_mse_is_never_worse_than_no_clipping(mode, bits):
    values = NORMAL[:2000].exp() - 0.5  # a long tail on one side
    full = quantization_error(values, values.min(), values.max(), bits, mode)
    assert quantization_error(values, *mse_range(values, bits, mode), bits, mode) <= full
    if bits == 4:
        assert quantization_error(values, *mse_range(values, bits, mode), bits, mode) < full * 0.85


def test_the_error_of_a_histogram_is_the_integral():
    histogram = Histogram(torch.tensor([3.0, 1.0]), -1.0, 1.0)
    points = torch.cat([torch.linspace(-1, 0, 30001)[:-1], torch.linspace(0, 1, 10001)[1:]])
    for bits in (1, 2, 4, 12):
        exact = quantization_error(points, -0.6, 0.7, bits, UNSIGNED)
        assert quantization_error(histogram, -0.6, 0.7, bits, UNSIGNED) == pytest.approx(exact, rel=1e-3)


def test_large_tensors_are_searched_through_a_histogram():
    values = torch.randn(200000, generator=torch.Generator().manual_seed(2))
    low, high = mse_range(values, 4, SYMMETRIC)
    assert (float(low), float(high)) == pytest.approx((-2.55, 2.55), abs=0.1)


def test_kl_cuts_a_long_tail_and_keeps_a_flat_one():
    outliers = torch.cat([NORMAL, torch.tensor([100.0, -100.0])])
    low, high = kl_range(outliers, 8, SYMMETRIC)
    assert low == -high and 3 < high < 40
    flat = torch.linspace(-1, 1, 20001)
    assert kl_range(flat, 8, SYMMETRIC)[1] == pytest.approx(1.0, abs=0.02)
    low, high = kl_range(torch.cat([NORMAL.relu(), torch.tensor([100.0])]), 8, UNSIGNED)
    assert low == 0 and 3 < high < 40
    low, high = kl_range(-NORMAL.abs(), 8, UNSIGNED)
    assert high == 0 and -6 < low < -3
    low, high = kl_range(torch.cat([NORMAL + 2, torch.tensor([200.0])]), 8, UNSIGNED)
    assert high < 100 and low < 0


def test_kl_divergence_matches_scipy():
    from scipy.stats import entropy

    from distiller_ng.ops.clipping.kl import _divergence

    inside = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    p = np.array([4, 2, 1, 3]) / 10
    q = np.array([3, 3, 1, 1]) / 8
    assert _divergence(inside, 0.0, 2.0, 2) == pytest.approx(entropy(p, q))


@pytest.mark.parametrize("bits", [11, 16])
def test_kl_with_many_levels_keeps_everything(bits):
    assert numbers(kl_range(NORMAL, bits, SYMMETRIC))[1] == pytest.approx(NORMAL.abs().max().item())


@pytest.mark.parametrize("name", CLIPPINGS.names())
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_conformance(name, mode, bits):
    if bits == 1 and mode is LinearQuantMode.SYMMETRIC_RESTRICTED:
        return
    clipping = clipping_named(name, n_stds=2)
    assert isinstance(clipping, Clipping) and clipping.name == name and clipping.needs
    values = NORMAL[:300].reshape(3, 100)
    before = values.clone()
    stats = {
        **{"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()},
        **{"avg_min": values.amin(1).mean(), "avg_max": values.amax(1).mean()},
        "b": (values - values.mean()).abs().mean(),
        "histogram": Histogram.of_tensor(values, 2048),
    }
    from_tensor = clipping.of_tensor(values, bits, mode)
    from_stats = clipping.of_stats(stats, bits, mode)
    for low, high in (from_tensor, from_stats):
        assert low.shape == high.shape == () and low.dtype == torch.float32 and low < high
        assert not mode.is_symmetric or low == -high
    if name not in ("MSE", "KL"):
        torch.testing.assert_close(from_tensor, from_stats, rtol=1e-5, atol=1e-5)
    assert torch.equal(values, before)
    for half in (torch.bfloat16, torch.float16):
        low, high = clipping.of_tensor(values.to(half), bits, mode)
        assert low < high
    with pytest.raises(CalibrationError, match=name):
        clipping.of_stats({"total_numel": 3}, bits, mode)
    with pytest.raises(ArgumentError, match="empty"):
        clipping.of_tensor(torch.zeros(0), bits, mode)


@pytest.mark.parametrize("name", ["NONE", "AVG", "GAUSS", "LAPLACE", "MSE", "KL"])
@pytest.mark.parametrize("mode", MODES)
def test_constant_tensors(name, mode):
    for value in (0.0, 2.5, -2.5):
        low, high = clipping_named(name).of_tensor(torch.full((2, 5), value), 8, mode)
        assert torch.isfinite(low) and torch.isfinite(high) and low <= high


@pytest.mark.parametrize("function", [mse_range, kl_range])
def test_nan_is_refused(function):
    with pytest.raises(ArgumentError, match="NaN"):
        function(torch.tensor([1.0, float("nan")]), 8, SYMMETRIC)
    with pytest.raises(ArgumentError, match="axis"):
        function(torch.ones(2, 2), 8, SYMMETRIC, axis=2)


def test_names():
    assert CLIPPINGS.names() == ["AVG", "GAUSS", "KL", "LAPLACE", "MSE", "NONE", "N_STD"]
    with pytest.raises(ArgumentError, match="GAUSS"):
        clipping_named("GAUS")
    with pytest.raises(ArgumentError, match="text"):
        clipping_named(3)
    with pytest.warns(ScheduleWarning, match="clip_half_range"):
        clipping_named("AVG", half_range=True)


def test_histogram():
    histogram = Histogram.of_tensor(torch.tensor([0, 1, 2, 4]), bins=4)
    assert histogram.counts.tolist() == [1, 1, 1, 1] and (histogram.low, histogram.high) == (0, 4)
    wider = histogram.rebinned(-4.0, 4.0, 4)
    torch.testing.assert_close(wider.counts, torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64))
    two_sided = Histogram(torch.tensor([1.0, 2.0, 3.0, 4.0]), -2.0, 2.0)
    assert two_sided.magnitudes(2).counts.tolist() == [5.0, 5.0]
    flat = Histogram.of_tensor(torch.full((7,), 2.5))
    assert flat.counts.sum() == 7 and flat.magnitudes(10).counts.sum() == 7
    for counts in (
        torch.zeros(3),
        torch.tensor([-1.0, 2.0]),
        torch.tensor([float("nan")]),
        torch.zeros(0),
        torch.ones(2, 2),
    ):
        with pytest.raises(ArgumentError):
            Histogram(counts, 0.0, 1.0)
    with pytest.raises(ArgumentError):
        Histogram(torch.ones(2), 1.0, 0.0)


def test_large_weights_are_searched_by_a_sample():
    weight = torch.randn(300, 1200, generator=torch.Generator().manual_seed(4))
    low, high = mse_range(weight, 4, SYMMETRIC, axis=0)
    for index in (0, 150, 299):
        alone = mse_range(weight[index], 4, SYMMETRIC)
        found = quantization_error(weight[index], low[index], high[index], 4, SYMMETRIC)
        assert found <= quantization_error(weight[index], *alone, 4, SYMMETRIC) * 1.02
