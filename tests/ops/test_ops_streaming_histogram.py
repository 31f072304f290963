"""Histograms that grow with their data."""

from itertools import pairwise

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.streaming_histogram import StreamingHistogram


def filled(batches, bins=64):
    histogram = StreamingHistogram(bins)
    for batch in batches:
        histogram.update(batch)
    return histogram


def test_merges_bins_when_values_fall_outside():
    histogram = filled([torch.tensor([0.0, 1.0, 2.0, 4.0])], bins=4)
    assert (histogram.counts.tolist(), histogram.edges.tolist()) == ([1, 1, 1, 1], [0, 1, 2, 3, 4])
    histogram.update(torch.tensor([8.0]))
    assert (histogram.counts.tolist(), histogram.edges.tolist()) == ([2, 2, 0, 1], [0, 2, 4, 6, 8])
    histogram.update(torch.tensor([-3.0]))
    assert (histogram.counts.tolist(), histogram.edges.tolist()) == ([1, 4, 1, 0], [-4, 0, 4, 8, 12])
    assert float(histogram.minimum) == -3.0 and float(histogram.maximum) == 8.0


def test_counts_match_a_direct_histogram_of_everything():
    torch.manual_seed(0)
    batches = [torch.randn(500) * (i + 1) + 7 * (i % 3) for i in range(12)]
    histogram = filled(batches)
    everything, edges = torch.cat(batches).double(), histogram.edges
    direct = torch.stack([((everything >= a) & (everything < b)).sum() for a, b in pairwise(edges)])
    assert float((direct - histogram.counts).abs().sum()) <= 2  # the moments' largest values
    assert float(histogram.counts.sum()) == everything.numel()
    exact = (everything - everything.mean()).abs().mean()
    assert float(histogram.mean_absolute_deviation(everything.mean())) == pytest.approx(float(exact), rel=2e-3)
    bin_width = float(edges[1] - edges[0])
    for fraction in (0.0, 0.01, 0.5, 0.99, 1.0):
        assert float(histogram.quantile(fraction)) == pytest.approx(float(everything.quantile(fraction)), abs=bin_width)


def test_single_values_lose_nothing_to_a_range_found_later():
    histogram = filled([torch.zeros(5), torch.tensor([1e-6, 2e-6])], bins=16)
    assert histogram.counts.sum() == 7
    assert float(histogram.edges[-1]) < 4e-6
    assert float(histogram.mean_absolute_deviation(0.0)) == pytest.approx(3e-6 / 7)
    histogram.update(torch.tensor([3e38, -3e38]))
    assert histogram.counts.sum() == 9
    assert bool(torch.isfinite(histogram.edges).all())


def test_merging_two_keeps_counts_and_extremes():
    left, right = filled([torch.linspace(0, 1, 100)]), filled([torch.linspace(-4, 0.5, 50)])
    left.merge(right)
    left.merge(StreamingHistogram())
    assert float(left.counts.sum()) == pytest.approx(150)
    assert float(left.minimum) == -4.0 and float(left.maximum) == 1.0


def test_state_dict_restores_everything():
    histogram, copy = filled([torch.linspace(0, 1, 100)]), StreamingHistogram(2)
    copy.load_state_dict(histogram.state_dict())
    copy.update(torch.tensor([5.0]))
    histogram.update(torch.tensor([5.0]))
    assert torch.equal(copy.counts, histogram.counts) and torch.equal(copy.edges, histogram.edges)


def test_frozen_is_what_range_searches_take():
    frozen = filled([torch.linspace(-1, 1, 1000)]).frozen()
    assert float(frozen.counts.sum()) == 1000
    assert (frozen.low, frozen.high) == (-1.0, 1.0)


@pytest.mark.parametrize("bins", [0, 1, 2.5, True, "8"])
def test_wrong_number_of_bins(bins):
    with pytest.raises(ArgumentError, match="bins must be a whole number"):
        StreamingHistogram(bins)


def test_empty_and_wrong_use():
    histogram = StreamingHistogram()
    histogram.update(torch.empty(0))
    assert histogram.is_empty
    with pytest.raises(ArgumentError, match="empty"):
        _ = histogram.edges
    histogram.update(torch.ones(3))
    with pytest.raises(ArgumentError, match="from 0 to 1"):
        histogram.quantile(1.5)


def test_mean_and_deviation():
    torch.manual_seed(0)
    values = torch.randn(3, 1000) * 2 + 5
    mean, deviation = filled(values, bins=2048).mean_and_deviation()
    assert float(mean) == pytest.approx(float(values.double().mean()), rel=1e-9)
    assert float(deviation) == pytest.approx(float(values.double().std(correction=0)), rel=1e-4)
