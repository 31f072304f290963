"""The flags of post-training quantization, the quantizer they make, and its checkpoints."""

from __future__ import annotations

import argparse
import copy
import types

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import load_checkpoint, save_checkpoint
from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning
from distiller_ng.quantization import LinearQuantMode, PostTrainLinearQuantizer, add_post_train_quant_args
from distiller_ng.quantization.ptq_layers import set_bias_
from distiller_ng.quantization.ptq_layout import dummy_input_of, layout_of, stats_of
from distiller_ng.quantization.quant_params import ClipMode

pytestmark = pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")

IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).flatten(1))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    model(torch.randn(16, 1, 6, 6))
    return model.eval()


def stats_file(folder):
    collect_quant_stats(net(), lambda model: model(IMAGES), save_dir=folder)
    return str(folder / "acts_quantization_stats.yaml")


def parse(*flags, **options):
    parser = argparse.ArgumentParser()
    add_post_train_quant_args(parser, **options)
    return parser.parse_args(flags)


def test_defaults():
    assert vars(parse()) == {
        "quantize_eval": False,
        "qe_mode": LinearQuantMode.SYMMETRIC,
        "qe_mode_acts": None,
        "qe_mode_wts": None,
        "qe_bits_acts": 8,
        "qe_bits_wts": 8,
        "qe_bits_accum": 32,
        "qe_clip_acts": "none",
        "qe_clip_n_stds": None,
        "qe_no_clip_layers": [],
        "qe_no_quant_layers": [],
        "qe_per_channel": False,
        "qe_scale_approx_bits": None,
        "qe_save_fp_weights": False,
        "qe_convert_pytorch": False,
        "qe_pytorch_backend": "fbgemm",
        "qe_stats_file": None,
        "qe_dynamic": False,
        "qe_calibration": None,
        "qe_config_file": None,
    }


def test_defaults_of_the_search():
    extra = {name: value for name, value in vars(parse(add_lapq_args=True)).items() if "lapq" in name}
    assert extra == {
        "qe_lapq": False,
        "lapq_maxiter": None,
        "lapq_maxfev": None,
        "lapq_method": "Powell",
        "lapq_basinhopping": False,
        "lapq_basinhopping_niter": 100,
        "lapq_init_mode": "NONE",
        "lapq_init_method": "Powell",
        "lapq_eval_size": 1.0,
        "lapq_eval_memoize_dataloader": False,
        "lapq_search_clipping": False,
    }


@pytest.mark.parametrize(
    "flags, name, value",
    [
        (["--qe"], "quantize_eval", True),
        (["--qem", "asym_u"], "qe_mode", LinearQuantMode.ASYMMETRIC_UNSIGNED),
        (["--qema", "sym_restr"], "qe_mode_acts", LinearQuantMode.SYMMETRIC_RESTRICTED),
        (["--qemw", "asym_s"], "qe_mode_wts", LinearQuantMode.ASYMMETRIC_SIGNED),
        (["--qeba", "0"], "qe_bits_acts", None),
        (["--qebw", "4"], "qe_bits_wts", 4),
        (["--qeca"], "qe_clip_acts", "avg"),
        (["--qeca", "n_std"], "qe_clip_acts", "n_std"),
        (["--qe-clip-acts", "--qe-per-channel"], "qe_clip_acts", "avg"),
        (["--qencl", "conv", "fc"], "qe_no_clip_layers", ["conv", "fc"]),
        (["--qenql", "fc"], "qe_no_quant_layers", ["fc"]),
        (["--qept"], "qe_convert_pytorch", True),
        (["--qesab", "8"], "qe_scale_approx_bits", 8),
        (["--qe-calibration", "0.25"], "qe_calibration", 0.25),
    ],
)
def test_flags(flags, name, value):
    assert getattr(parse(*flags), name) == value


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--qe-mode", "symmetric"], "sym_restr"),
        (["--qe-clip-acts", "mean"], "laplace"),
        (["--qe-bits-acts", "40"], "number of bits"),
        (["--qe-calibration", "0"], "above 0"),
        (["--qe-calibration", "1.5"], "up to 1"),
        (["--qe-dynamic", "--qe-stats-file", "f"], "not allowed with"),
        (["--qe-config-file", "f", "--qe-calibration", "0.1"], "not allowed with"),
        (["--qe", "--qe-calibration", "0.1"], "not allowed with argument --quantize-eval"),
        (["--qe-calibration", "0.1", "--qe"], "not allowed with argument --qe-calibration"),
        (["--qe-pytorch-backend", "tpu"], "fbgemm"),
    ],
)
def test_wrong_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(*flags)
    assert message in capsys.readouterr().err


def test_applications_may_calibrate_and_evaluate():
    args = parse("--qe", "--qe-calibration", "0.1", calibrate_and_evaluate=True)
    assert (args.quantize_eval, args.qe_calibration) == (True, 0.1)


def test_the_quantizer_of_the_flags(tmp_path):
    model = net()
    args = parse(
        *("--qe-stats-file", stats_file(tmp_path), "--qe-mode-acts", "asym_u", "--qe-bits-wts", "4"),
        *("--qe-clip-acts", "--qe-no-clip-layers", "fc", "--qe-per-channel", "--qe-save-fp-weights"),
    )
    quantizer = PostTrainLinearQuantizer.from_args(model, args)
    quantizer.prepare_model(IMAGES)
    assert model.conv.mode.activations is LinearQuantMode.ASYMMETRIC_UNSIGNED
    assert model.conv.mode.weights is LinearQuantMode.SYMMETRIC
    assert model.conv.wts_quant_settings.num_bits == 4
    assert model.conv.w_scale.numel() == 4
    assert model.conv.output_quant_settings.clip_mode is ClipMode.AVG
    assert model.fc.output_quant_settings.clip_mode is ClipMode.NONE
    assert "float_weight" in dict(model.fc.named_buffers())


def test_layers_left_alone_and_no_statistics():
    model = net()
    quantizer = PostTrainLinearQuantizer.from_args(model, parse("--qe-no-quant-layers", "fc"))
    quantizer.prepare_model(IMAGES)
    assert type(model.fc) is nn.Linear
    assert type(model.conv) is not nn.Conv2d
    assert quantizer.model_activation_stats is None


def test_a_namespace_without_most_flags():
    quantizer = PostTrainLinearQuantizer.from_args(net(), argparse.Namespace(qe_bits_wts=5))
    assert (quantizer.default_qbits.wts, quantizer.default_qbits.acts) == (5, 8)


def test_a_configuration_file(tmp_path):
    path = tmp_path / "ptq.yaml"
    path.write_text("quantizers:\n  mine:\n    class: PostTrainLinearQuantizer\n    bits_parameters: 3\n")
    args = parse("--qe-config-file", str(path), "--qe-bits-wts", "6")
    quantizer = PostTrainLinearQuantizer.from_args(net(), args)
    assert quantizer.default_qbits.wts == 3
    path.write_text("quantizers:\n  mine:\n    class: PACTQuantizer\n    act_clip_init_val: 3\n")
    with pytest.raises(ScheduleError, match="PostTrainLinearQuantizer"):
        PostTrainLinearQuantizer.from_args(net(), args)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--qe-clip-acts", "n_std"], "--qe-clip-n-stds"),
        (["--qe-clip-n-stds", "2"], "n_std"),
        (["--qe-bits-acts", "0", "--qe-bits-wts", "0"], "nothing to quantize"),
        (["--qe-lapq", "--qe-dynamic"], "--qe-stats-file"),
    ],
)
def test_flags_that_cannot_go_together(flags, message):
    with pytest.raises(ArgumentError, match=message):
        PostTrainLinearQuantizer.from_args(net(), parse(*flags, add_lapq_args=True))


def test_a_flag_without_effect_is_told():
    with pytest.warns(ScheduleWarning, match="no-clip-layers"):
        PostTrainLinearQuantizer.from_args(net(), parse("--qe-no-clip-layers", "fc"))


def test_the_seeds_call_as_it_is_written(tmp_path):
    """An older argument order, the flags' values passed by position, and no dummy input."""
    model = net()
    model.input_shape = (1, 1, 6, 6)
    args = parse("--qe", "--qe-stats-file", stats_file(tmp_path), "--qe-no-clip-layers", "fc", "--qe-clip-acts")
    with pytest.warns(DeprecationWarning, match="order of arguments"):
        quantizer = PostTrainLinearQuantizer(model, args.qe_bits_acts, args.qe_bits_wts,
                                             args.qe_bits_accum, None, args.qe_mode, args.qe_clip_acts,
                                             args.qe_no_clip_layers, args.qe_per_channel,
                                             args.qe_stats_file)  # fmt: skip
    quantizer.prepare_model()
    assert model.fc.output_quant_settings.clip_mode is ClipMode.NONE
    assert model.conv.output_quant_settings.clip_mode is ClipMode.AVG
    assert model.conv.fuses_relu


def test_the_seeds_call_without_a_statistics_file():
    model, args = net(), parse("--qe")
    with pytest.warns(DeprecationWarning, match="order of arguments"):
        quantizer = PostTrainLinearQuantizer(model, args.qe_bits_acts, args.qe_bits_wts, args.qe_bits_accum, None,
                                             args.qe_mode, args.qe_clip_acts, args.qe_no_clip_layers,
                                             args.qe_per_channel, args.qe_stats_file)  # fmt: skip
    assert quantizer.model_activation_stats is None


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": distiller.quantization.ModuleQuantMode("ASYMMETRIC_UNSIGNED", "SYMMETRIC"), "per_channel_wts": True},
        {"overrides": {"fc": {"input_overrides": {0: {"from_output": True}}}}, "save_fp_weights": True},
        {"bits_activations": None, "bits_parameters": 4},
    ],
)
def test_a_quantized_model_is_saved_and_loaded(tmp_path, static, settings):
    model = net()
    stats = collect_quant_stats(model, lambda model: model(IMAGES)) if static else None
    PostTrainLinearQuantizer(model, model_activation_stats=stats, **settings).prepare_model(IMAGES)
    expected = model.eval()(IMAGES)
    path = save_checkpoint(0, None, model, dir=tmp_path)
    fresh = net(seed=1)
    load_checkpoint(fresh, path)
    assert torch.equal(fresh.eval()(IMAGES), expected)
    load_checkpoint(fresh, path)  # into a model that is quantized so already
    assert torch.equal(fresh.eval()(IMAGES), expected)


def test_a_model_quantized_in_the_oldest_order_is_loaded(tmp_path):
    model = net()
    stats = collect_quant_stats(model, lambda model: model(IMAGES))
    with pytest.warns(DeprecationWarning):
        quantizer = PostTrainLinearQuantizer(model, 8, 8, 32, None, "SYMMETRIC", "AVG", ["fc"], True, stats)
    quantizer.prepare_model(IMAGES)
    path = save_checkpoint(0, None, model, dir=tmp_path)
    fresh = net(seed=1)
    load_checkpoint(fresh, path)
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))
    assert fresh.fc.output_quant_settings.clip_mode is ClipMode.NONE


def test_statistics_with_histograms(tmp_path):
    model = net()
    stats = collect_quant_stats(model, lambda model: model(IMAGES), histograms=True)
    PostTrainLinearQuantizer(model, clip_acts="MSE", model_activation_stats=stats).prepare_model(IMAGES)
    path = save_checkpoint(0, None, model, dir=tmp_path)
    fresh = net(seed=1)
    load_checkpoint(fresh, path)
    assert torch.equal(fresh.eval()(IMAGES), model.eval()(IMAGES))


def test_what_was_changed_afterwards(tmp_path):
    """Biases that layers got, and outputs that stay in floating point: what ``distiller.quantize`` does."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3, bias=False))
    fresh = copy.deepcopy(model)
    stats = collect_quant_stats(model.eval(), lambda model: model(IMAGES))
    PostTrainLinearQuantizer(model, model_activation_stats=stats).prepare_model(IMAGES)
    with torch.no_grad():
        set_bias_(model[0], torch.ones(4))
    model[3].quantizes_output = False
    path = save_checkpoint(0, None, model, dir=tmp_path)
    for _ in range(2):
        load_checkpoint(fresh, path, strict=True)
        assert torch.equal(fresh.eval()(IMAGES), model(IMAGES))
    quantized = distiller.quantize(net(), [IMAGES] * 4, bits_weights=4, held_back=4)
    path = save_checkpoint(0, None, quantized.model, dir=tmp_path)
    fresh = net(seed=1)
    load_checkpoint(fresh, path, strict=True)
    assert torch.equal(fresh.eval()(IMAGES), quantized(IMAGES))


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1, 3),
        (torch.zeros(2, dtype=torch.int64), [torch.zeros(1, 2, dtype=torch.float64), None]),
        ({"x": torch.zeros(3, dtype=torch.bool)}, 3, "text"),
    ],
)
def test_inputs_are_described_by_their_shapes(value):
    def shapes(value):
        if isinstance(value, torch.Tensor):
            return (tuple(value.shape), value.dtype)
        if isinstance(value, dict):
            return {key: shapes(one) for key, one in value.items()}
        return type(value)(map(shapes, value)) if isinstance(value, list | tuple) else value

    rebuilt = dummy_input_of(nn.Linear(1, 1), layout_of(value, None))
    assert shapes(rebuilt) == shapes(value)


def test_other_inputs_are_left_out():
    assert layout_of(types.SimpleNamespace(), None) == {}
    assert dummy_input_of(nn.Linear(1, 1), {}) is None
    assert stats_of({}) is None
