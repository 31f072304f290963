"""Sensitivity analysis: what is changed, what is restored, resuming, processes and ranks."""

from __future__ import annotations

import json

import pytest
import torch
import torch.multiprocessing
from replicas import in_two_processes
from torch import nn

from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.reports.sensitivity import (
    perform_sensitivity_analysis,
    sensitivities_to_csv,
    sensitivities_to_png,
)

WEIGHT = [[1.0, -2.0, 3.0, -4.0], [0.5, 0.5, 0.5, 0.5], [-9.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0]]


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(WEIGHT))
        model[1].weight.fill_(1.0)
    return model


def sum_of_magnitudes(model: nn.Module) -> tuple[float, float, float]:
    """Scores that show exactly what was done to the weights."""
    first, second = (model[at].weight.detach() for at in (0, 1))
    return float(first.abs().sum()), float(second.abs().sum()), float((first == 0).sum())


def test_elements_are_pruned_one_parameter_at_a_time_and_come_back():
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    found = perform_sensitivity_analysis(model, ["0.weight", "1.weight"], [0.0, 0.5], sum_of_magnitudes)
    assert found == {
        # the eight lowest: 0, four 0.5, and three of the 1.0s
        "0.weight": {0.0: (30.0, 8.0, 1.0), 0.5: (25.0, 8.0, 8.0)},
        "1.weight": {0.0: (30.0, 8.0, 1.0), 0.5: (30.0, 4.0, 1.0)},
    }
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_filters_are_rows_and_channels_are_columns():
    rows = perform_sensitivity_analysis(network(), "0.weight", [0.5], sum_of_magnitudes, "filter")
    assert rows["0.weight"][0.5] == (22.0, 8.0, 8.0)  # rows of sums 2 and 6 go
    columns = perform_sensitivity_analysis(network(), "0.weight", [0.25], sum_of_magnitudes, "channel")
    assert columns["0.weight"][0.25] == (24.5, 8.0, 5.0)  # columns sum up to 10.5, 5.5, 6.5 and 7.5; one zero elsewhere


def test_bits_round_each_row_by_its_own_scale():
    found = perform_sensitivity_analysis(network(), "0.weight", [2, 8], sum_of_magnitudes, "bits")
    # two bits: -1, 0 and 1 times the row's largest magnitude; halves go to even
    assert found["0.weight"][2.0] == (4.0 + 4.0 + 2.0 + 9.0 + 6.0, 8.0, 6.0)
    assert found["0.weight"][8.0][0] == pytest.approx(30.0, abs=0.2)


def test_weights_come_back_when_the_test_fails():
    model = network()

    def fails(model: nn.Module) -> tuple[float, float, float]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        perform_sensitivity_analysis(model, "0.weight", [0.9], fails)
    assert model[0].weight.tolist() == WEIGHT


def test_an_interrupted_analysis_goes_on(tmp_path):
    file, calls = tmp_path / "found.json", []

    def interrupted(model: nn.Module) -> tuple[float, float, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sum_of_magnitudes(model)

    with pytest.raises(KeyboardInterrupt):
        perform_sensitivity_analysis(network(), "0.weight", [0.0, 0.5, 1.0], interrupted, results_file=file)
    assert len(json.loads(file.read_text())["measured"]) == 1
    found = perform_sensitivity_analysis(network(), "0.weight", [0.0, 0.5, 1.0], interrupted, results_file=file)
    assert len(calls) == 4
    assert list(found["0.weight"]) == [0.0, 0.5, 1.0]


def test_a_file_of_other_weights_or_another_group_is_refused(tmp_path):
    file = tmp_path / "found.json"
    perform_sensitivity_analysis(network(), "0.weight", [0.5], sum_of_magnitudes, results_file=file)
    with pytest.raises(ArgumentError, match="of group 'element', asked for is 'filter'"):
        perform_sensitivity_analysis(network(), "0.weight", [0.5], sum_of_magnitudes, "filter", results_file=file)
    other = network()
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(ArgumentError, match=r"other weights of 0\.weight"):
        perform_sensitivity_analysis(other, "0.weight", [0.5], sum_of_magnitudes, results_file=file)
    file.write_text("[]")
    with pytest.raises(ArgumentError, match="holds no sensitivities"):
        perform_sensitivity_analysis(network(), "0.weight", [0.5], sum_of_magnitudes, results_file=file)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("0.weight", [0.5], sum_of_magnitudes, "filters"), ValueError, "Did you mean 'filter'"),
        (("0.weight", [1.5], sum_of_magnitudes), ArgumentError, "between 0 and 1"),
        (("0.weight", [4.5], sum_of_magnitudes, "bits"), ArgumentError, "4.5"),
        (("0.weight", ["much"], sum_of_magnitudes), ArgumentError, "must be a number"),
        (("0.wait", [0.5], sum_of_magnitudes), TargetError, "Did you mean '0.weight'"),
        (("0.bias", [0.5], sum_of_magnitudes), ArgumentError, "no parameters with two dimensions"),
        (("0.weight", [], sum_of_magnitudes), ArgumentError, "no levels"),
        (("0.weight", [0.5], lambda model: "3"), ArgumentError, "must return"),
        (("0.weight", [0.5], lambda model: (1, 2)), ArgumentError, "must return"),
    ],
)
def test_mistakes(arguments, error, message):
    with pytest.raises(error, match=message):
        perform_sensitivity_analysis(network(), *arguments)


def test_csv_has_distillers_columns_and_the_picture_is_a_png(tmp_path):
    found = {"a.weight": {0.0: (90.0, 99.0, 0.1), 0.5: (80.5, 98.0, 0.4)}}
    sensitivities_to_csv(found, tmp_path / "found.csv")
    expected = "parameter,sparsity,top1,top5,loss\na.weight,0.0,90.0,99.0,0.1\na.weight,0.5,80.5,98.0,0.4\n"
    assert (tmp_path / "found.csv").read_text() == expected
    sensitivities_to_png(found, tmp_path / "found.png", metric="loss")
    assert (tmp_path / "found.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ArgumentError, match="Did you mean .*'top1'"):
        sensitivities_to_png(found, tmp_path / "other.png", metric="top2")


def test_a_test_function_that_cannot_be_sent_is_refused():
    with pytest.raises(ArgumentError, match="importable by name"):
        perform_sensitivity_analysis(network(), "0.weight", [0.5], lambda model: (1, 2, 3), processes=2)


@pytest.mark.slow
def test_processes_measure_the_same():
    wanted = perform_sensitivity_analysis(network(), "0.weight", [0.0, 0.5, 1.0], sum_of_magnitudes)
    found = perform_sensitivity_analysis(network(), "0.weight", [0.0, 0.5, 1.0], sum_of_magnitudes, processes=2)
    assert found == wanted


def _rank(rank, folder):
    calls = []

    def counted(model: nn.Module) -> tuple[float, float, float]:
        calls.append(1)
        return sum_of_magnitudes(model)

    found = perform_sensitivity_analysis(
        network(), "0.weight", [0.0, 0.5, 1.0], counted, results_file=f"{folder}/found.json"
    )
    torch.save({"found": found, "calls": len(calls)}, f"{folder}/rank{rank}.pt")


@pytest.mark.slow
def test_ranks_share_the_measurements(tmp_path):
    in_two_processes(_rank, tmp_path)
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [one["calls"] for one in results] == [2, 1]
    wanted = perform_sensitivity_analysis(network(), "0.weight", [0.0, 0.5, 1.0], sum_of_magnitudes)
    assert results[0]["found"] == results[1]["found"] == wanted
    assert len(json.loads((tmp_path / "found.json").read_text())["measured"]) == 3
    assert not list(tmp_path.glob("found.json.rank*"))
