"""Pruners that compare magnitudes with a threshold, against hand-made values and float64 references."""

import numpy as np
import pytest
import torch
from pruning_helpers import Holder, context, decide

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import RESTORED, MaskRegistry
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import (
    BaiduRNNPruner,
    MagnitudeParameterPruner,
    SensitivityPruner,
    SplicingPruner,
    StructureParameterPruner,
)

GROWING = {"class": "Linear", "final_sparsity": 1}


# -- MagnitudeParameterPruner -----------------------------------------------------------------------------------------


def test_magnitude_keeps_what_exceeds_the_threshold():
    model = Holder(a=torch.tensor([[0.2, -0.5, 0.4]]), b=torch.tensor([[0.2, -0.5, 0.4]]))
    masks = decide(MagnitudeParameterPruner("p", {"a.weight": 0.4, "*": 0.1}), model)
    assert masks["a.weight"].tolist() == [[0, 1, 0]]
    assert masks["b.weight"].tolist() == [[1, 1, 1]]


def test_magnitude_prunes_the_one_small_weight_and_the_mask_fits_other_tensors():
    tensor = torch.ones(3, 4, 5, 5)
    tensor[1, 2, 3, 4] = 0.2
    masks = {"a": ParameterMasker("a")}
    MagnitudeParameterPruner("test", {"*": 0.4}).set_param_mask(tensor, "a", masks, None)
    assert int((masks["a"].mask == 0).sum()) == 1
    assert masks["a"].mask[1, 2, 3, 4] == 0
    other = torch.full((3, 4, 5, 5), 0.3)
    masks["a"].apply_mask(other)
    assert int((other == 0).sum()) == 1


@pytest.mark.parametrize("thresholds", [None, {}, {"a.weight": 0.1}])
def test_magnitude_requires_the_star(thresholds):
    with pytest.raises(ArgumentError) as caught:
        MagnitudeParameterPruner("p", thresholds)
    assert caught.value.argument == ("thresholds",)


def test_magnitude_refuses_negative_thresholds():
    with pytest.raises(ArgumentError, match="0 or more") as caught:
        MagnitudeParameterPruner("p", {"*": -0.1})
    assert caught.value.argument == ("thresholds", "*")


def test_magnitude_schedule_scales_the_threshold_and_pattern_thins_further():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    pruner = MagnitudeParameterPruner("p", {"*": 2.0}, schedule=GROWING)
    assert decide(pruner, model, epoch=2, window=(0, 5, 1))["a.weight"].tolist() == [[0, 1, 1, 1]]
    assert decide(pruner, model, epoch=4, window=(0, 5, 1))["a.weight"].tolist() == [[0, 0, 1, 1]]
    patterned = MagnitudeParameterPruner("p", {"*": 1.0}, pattern="1:2")
    assert decide(patterned, model)["a.weight"].tolist() == [[0, 1, 0, 1]]


# -- SensitivityPruner ------------------------------------------------------------------------------------------------


def test_sensitivity_counts_in_standard_deviations():
    model = Holder(a=torch.tensor([[-1.0, 0.0, 1.0, 4.0]]))  # deviation 2.1602
    assert decide(SensitivityPruner("p", {"a.weight": 0.5}), model)["a.weight"].tolist() == [[0, 0, 0, 1]]
    assert decide(SensitivityPruner("p", {"a.weight": 0.4}), model)["a.weight"].tolist() == [[1, 0, 1, 1]]


def test_sensitivity_agrees_with_a_float64_reference():
    weight = torch.randn(40, 50)
    values = weight.numpy().astype(np.float64)
    mask = decide(SensitivityPruner("p", {"*": 1.0}), Holder(a=weight))["a.weight"]
    assert np.array_equal(mask.numpy(), np.abs(values) > values.std(ddof=1))
    assert 1 - float(mask.mean()) == pytest.approx(0.6827, abs=0.05)


def test_sensitivity_measures_once_and_resumes_with_what_it_measured():
    model = Holder(a=torch.tensor([[-1.0, 0.0, 1.0, 4.0]]))
    pruner = SensitivityPruner("p", {"a.weight": 0.5})
    decide(pruner, model)
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[1.0, 1.1, 1.0, 1.1]]))  # by now the deviation is 0.06
    resumed = SensitivityPruner("p", {"a.weight": 0.5})
    resumed.load_state_dict(pruner.state_dict())
    for one in (pruner, resumed):
        assert decide(one, model)["a.weight"].tolist() == [[0, 1, 0, 1]]
    assert decide(SensitivityPruner("p", {"a.weight": 0.5}), model)["a.weight"].tolist() == [[1, 1, 1, 1]]


def test_sensitivity_global_scope_pools_the_deviation():
    small, large = torch.tensor([[-0.1, 0.1]]), torch.tensor([[-3.0, 3.0]])
    model = Holder(a=small, b=large)
    deviation = float(np.std([-0.1, 0.1, -3, 3], ddof=1))  # 2.45
    assert deviation == pytest.approx(2.4508, abs=1e-4)
    masks = decide(SensitivityPruner("p", {"*": 1.0}, scope="global"), model)
    assert masks["a.weight"].tolist() == [[0, 0]]
    assert masks["b.weight"].tolist() == [[1, 1]]
    by_layer = decide(SensitivityPruner("p", {"*": 1.0}), model)
    assert by_layer["b.weight"].tolist() == [[0, 0]]  # deviation 4.24


def test_sensitivity_of_a_single_value_is_not_nan():
    mask = decide(SensitivityPruner("p", {"*": 1.0}), Holder(a=torch.tensor([[0.5]])))["a.weight"]
    assert mask.tolist() == [[1]]


# -- SplicingPruner ---------------------------------------------------------------------------------------------------


def test_splicing_prunes_keeps_and_brings_back():
    model = Holder(a=torch.tensor([[1.0, -2.0, 3.0]]))  # mean 2, deviation 1 of the magnitudes
    masks = MaskRegistry(ParameterIndex(model))
    pruner = SplicingPruner("p", {"a.weight": 0}, 0.75, 1.25)  # thresholds 1.5 and 2.5
    assert decide(pruner, model, context(model, masks=masks))["a.weight"].tolist() == [[0, 1, 1]]
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[2.0, 1.0, 2.0]]))  # in between, below, in between
    assert decide(pruner, model, context(model, masks=masks))["a.weight"].tolist() == [[0, 0, 1]]
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[2.5, 2.0, 2.0]]))  # spliced back at exactly the upper threshold
    assert decide(pruner, model, context(model, masks=masks))["a.weight"].tolist() == [[1, 0, 1]]


def test_splicing_sensitivity_grows_with_the_epochs():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0]]))
    pruner = SplicingPruner("p", {"*": 0.5}, 1, 1, sensitivity_multiplier=0.5)
    # threshold 2 + 0.5 * (1 + 0.5 * (epoch - 4)): 2.5 in epoch 4, 3 in 6, 3.25 in 7
    kept = {epoch: decide(pruner, model, epoch=epoch, window=(4, 10, 1))["a.weight"].tolist()[0] for epoch in (4, 6, 7)}
    assert kept == {4: [0, 0, 1], 6: [0, 0, 1], 7: [0, 0, 0]}


def test_splicing_goes_on_from_a_restored_mask_and_keeps_its_statistics():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0]]))
    masks = MaskRegistry(ParameterIndex(model))
    masks.set("a.weight", torch.tensor([[1.0, 0.0, 1.0]]), owner=RESTORED)
    pruner = SplicingPruner("p", {"*": 0}, 0.75, 1.25)
    assert decide(pruner, model, context(model, masks=masks))["a.weight"].tolist() == [[0, 0, 1]]
    assert pruner.state_dict() == {"statistics": {"a.weight": [2.0, 1.0]}}


def test_splicing_schedule_and_pattern():
    model = Holder(a=torch.tensor([[1.0, 2.0, 3.0]]))
    half = SplicingPruner("p", {"*": 2}, 1, 1, schedule=GROWING)
    assert decide(half, model, epoch=1, window=(0, 3, 1))["a.weight"].tolist() == [[0, 0, 1]]  # 2 + 1 * 2 * 0.5
    assert decide(half, model, epoch=2, window=(0, 3, 1))["a.weight"].tolist() == [[0, 0, 0]]
    assert decide(SplicingPruner("p", {"*": -9}, 1, 1, pattern="1:3"), model)["a.weight"].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("multipliers", "argument"),
    [((1.1, 0.9), "hi_thresh_mult"), ((-1, 1), "low_thresh_mult"), ((1, "x"), "hi_thresh_mult")],
)
def test_splicing_multipliers_are_checked(multipliers, argument):
    with pytest.raises(ArgumentError) as caught:
        SplicingPruner("p", {"*": 1}, *multipliers)
    assert caught.value.argument == (argument,)


# -- BaiduRNNPruner ---------------------------------------------------------------------------------------------------


def test_baidu_threshold_rises_slowly_then_fast():
    # q 0.15, ramp at 4 + 3 = 7, epochs 4 to 21 every 3: theta = 0.9 / (6 + 42) = 0.01875, phi = 0.0375
    expected = {4: 0.00625, 7: 0.0375, 10: 0.075, 19: 0.1875}
    pruner = BaiduRNNPruner("p", 0.15, 3, 2, ["a.weight"])
    for epoch, eps in expected.items():
        model = Holder(a=torch.tensor([[eps * 0.999, eps * 1.001]]))
        assert decide(pruner, model, epoch=epoch, window=(4, 21, 3))["a.weight"].tolist() == [[0, 1]]
        assert pruner.threshold("a.weight", None, context(model, epoch=epoch, window=(4, 21, 3))) == pytest.approx(eps)


def test_baidu_schedule_pattern_and_checks():
    model = Holder(a=torch.tensor([[0.003, 0.004, 1.0, 2.0]]))
    pruner = BaiduRNNPruner("p", 0.15, 3, 2, "a.weight", schedule={"class": "Constant", "sparsity": 0.5})
    assert decide(pruner, model, epoch=4, window=(4, 21, 3))["a.weight"].tolist() == [[0, 1, 1, 1]]  # 0.003125
    patterned = BaiduRNNPruner("p", 0.15, 3, 2, "a.weight", pattern="1:2")
    assert decide(patterned, model, epoch=4, window=(4, 21, 3))["a.weight"].tolist() == [[0, 0, 0, 1]]
    parameters = ParameterIndex(model)
    with pytest.raises(ArgumentError, match="ending_epoch"):
        BaiduRNNPruner("p", 0.15, 3, 2, "a.weight").check(PolicyWindow.from_range(0, -1), parameters)
    with pytest.raises(ArgumentError, match="too far behind"):
        BaiduRNNPruner("p", 0.15, 30, 2, "a.weight").check(PolicyWindow.from_range(0, 10), parameters)
    with pytest.raises(ArgumentError) as caught:
        BaiduRNNPruner("p", -1, 3, 2, "a.weight")
    assert caught.value.argument == ("q",)


# -- StructureParameterPruner -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("regim", "criteria", "kept"),
    [
        ([1.4, "Rows"], "Mean_Abs", [[1, 1], [1, 1]]),
        ([1.5, "Rows"], "Mean_Abs", [[0, 0], [1, 1]]),
        ([2.0, "Rows"], "Max", [[0, 0], [1, 1]]),
        ([2.5, "Cols"], "Mean_Abs", [[0, 1], [0, 1]]),
        ([3.0, "Channels"], "Max", [[0, 1], [0, 1]]),
        ([2.0, "Filters"], "Max", [[0, 0], [1, 1]]),
        ([3.5, "4D"], "Max", [[1, 1], [1, 1]]),
        ([4.0, "4D"], "Max", [[0, 0], [0, 0]]),
    ],
)
def test_structures_above_the_threshold_stay(regim, criteria, kept):
    model = Holder(a=torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    pruner = StructureParameterPruner("p", model, {"a.weight": regim}, criteria)
    assert decide(pruner, model)["a.weight"].tolist() == kept


def test_structure_kernels_schedule_and_pattern():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(2, 2, 1, 1).expand(2, 2, 3, 3).clone()
    model = Holder(a=weight)
    pruner = StructureParameterPruner("p", None, {"a.weight": [4.0, "2D"]}, "Mean_Abs", schedule=GROWING)
    assert decide(pruner, model, epoch=1, window=(0, 3, 1))["a.weight"][:, :, 0, 0].tolist() == [[0, 0], [1, 1]]
    patterned = StructureParameterPruner("p", None, {"a.weight": [0.0, "2D"]}, "Max", pattern="1:4")
    assert decide(patterned, model)["a.weight"][:, :, 1, 1].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("regims", "argument"),
    [
        (None, ("reg_regims",)),
        ({"a.weight": 0.5}, ("reg_regims", "a.weight")),
        ({"a.weight": [-1, "Rows"]}, ("reg_regims", "a.weight", 0)),
        ({"a.weight": [1, "5D"]}, ("reg_regims", "a.weight", 1)),
    ],
)
def test_structure_regims_are_checked(regims, argument):
    with pytest.raises(ArgumentError) as caught:
        StructureParameterPruner("p", None, regims, "Max")
    assert caught.value.argument == argument


def test_structure_type_must_fit_the_parameter_and_criteria_exist():
    model = Holder(a=torch.ones(2, 2))
    with pytest.raises(TargetError, match="'2D' needs a weight of 3 to 5 dimensions") as caught:
        StructureParameterPruner("p", model, {"a.weight": [1, "2D"]}, "Max")
    assert caught.value.argument == ("reg_regims", "a.weight", 1)
    with pytest.raises(ArgumentError, match="Max, Mean_Abs"):
        StructureParameterPruner("p", model, {"a.weight": [1, "Rows"]}, "L2")
