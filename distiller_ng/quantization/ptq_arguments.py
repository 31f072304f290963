"""Distiller's command-line arguments for post-training quantization, and the quantizer they describe (layer 2)."""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization.integer_models import BACKENDS
from distiller_ng.quantization.quant_params import ClipMode

if TYPE_CHECKING:
    from distiller_ng.quantization.post_train import PostTrainLinearQuantizer

__all__ = ["add_post_train_quant_args", "check_post_train_quant_args", "quantizer_from_args"]

_MODES = {
    "sym": LinearQuantMode.SYMMETRIC,
    "sym_restr": LinearQuantMode.SYMMETRIC_RESTRICTED,
    "asym_s": LinearQuantMode.ASYMMETRIC_SIGNED,
    "asym_u": LinearQuantMode.ASYMMETRIC_UNSIGNED,
}
_INIT_MODES = ("NONE", "AVG", "LAPLACE", "GAUSS", "L1", "L2", "L3")


class _Group(Protocol):
    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action: ...


def add_post_train_quant_args(
    parser: argparse.ArgumentParser, add_lapq_args: bool = False, *, calibrate_and_evaluate: bool = False
) -> None:
    """Add ``--quantize-eval`` and all ``--qe-...`` flags to ``parser``; with ``add_lapq_args`` ``--lapq-...`` too.

    ``--qe-stats-file``, ``--qe-dynamic``, ``--qe-calibration`` and ``--qe-config-file`` exclude each other. So do
    ``--quantize-eval`` and ``--qe-calibration``, unless ``calibrate_and_evaluate``: for programs that calibrate and
    quantize in one run. Read the result with ``PostTrainLinearQuantizer.from_args(model, args)``.

    >>> parser = argparse.ArgumentParser()
    >>> add_post_train_quant_args(parser)
    >>> args = parser.parse_args(["--quantize-eval", "--qe-bits-acts", "0", "--qe-clip-acts"])
    >>> args.qe_bits_acts, args.qe_bits_wts, args.qe_clip_acts
    (None, 8, 'avg')
    """
    group = parser.add_argument_group(
        'Arguments controlling quantization at evaluation time ("post-training quantization")'
    )
    rival = None if calibrate_and_evaluate else ("qe_calibration", "--qe-calibration")
    group.add_argument(
        "--quantize-eval",
        "--qe",
        action=_Flag,
        rival=rival,
        default=False,
        help="quantize the model before it is evaluated; only with --evaluate",
    )
    _add_grids(group)
    _add_clipping(group)
    _add_extent(group)
    _add_sources(group.add_mutually_exclusive_group(), calibrate_and_evaluate)
    if add_lapq_args:
        _add_lapq(group)


def _add_grids(group: _Group) -> None:
    names = " | ".join(_MODES)
    group.add_argument(
        "--qe-mode", "--qem", type=_mode, default="sym", metavar="MODE", help=f"linear quantization mode: {names}"
    )
    group.add_argument("--qe-mode-acts", "--qema", type=_mode, metavar="MODE", help="of activations (as --qe-mode)")
    group.add_argument("--qe-mode-wts", "--qemw", type=_mode, metavar="MODE", help="of weights (as --qe-mode)")
    for what, flags in (("activations", ("--qe-bits-acts", "--qeba")), ("weights", ("--qe-bits-wts", "--qebw"))):
        group.add_argument(
            *flags, type=_bits, default=8, metavar="NUM_BITS", help=f"bits of {what}, 0 leaves them in floating point"
        )
    group.add_argument("--qe-bits-accum", type=_bits, default=32, metavar="NUM_BITS", help="bits of accumulators")


def _add_clipping(group: _Group) -> None:
    names = [mode.name.lower() for mode in ClipMode]
    group.add_argument(
        "--qe-clip-acts",
        "--qeca",
        nargs="?",
        const="avg",
        default="none",
        type=_clipping,
        metavar="MODE",
        help=f"clip activations: {' | '.join(names)}; without a mode: avg (minima and maxima averaged over a batch)",
    )
    group.add_argument(
        "--qe-clip-n-stds", type=_positive, metavar="N", help="standard deviations of --qe-clip-acts n_std"
    )
    group.add_argument(
        "--qe-no-clip-layers",
        "--qencl",
        nargs="+",
        default=[],
        metavar="LAYER_NAME",
        help="layers whose activations are not clipped",
    )


def _add_extent(group: _Group) -> None:
    group.add_argument(
        "--qe-no-quant-layers",
        "--qenql",
        nargs="+",
        default=[],
        metavar="LAYER_NAME",
        help="layers that stay in floating point",
    )
    group.add_argument(
        "--qe-per-channel", "--qepc", action="store_true", help="one scale for each output channel of a weight"
    )
    group.add_argument(
        "--qe-scale-approx-bits",
        "--qesab",
        type=_whole,
        metavar="NUM_BITS",
        help="replace scales by an integer of this many bits and a shift",
    )
    group.add_argument("--qe-save-fp-weights", action="store_true", help="keep the weights in floating point, too")
    group.add_argument(
        "--qe-convert-pytorch", "--qept", action="store_true", help="convert to real int8 and evaluate that"
    )
    group.add_argument(
        "--qe-pytorch-backend",
        choices=tuple(BACKENDS),
        default="fbgemm",
        help="what --qe-convert-pytorch converts for (default: fbgemm, that is x86)",
    )


def _add_sources(group: _Group, calibrate_and_evaluate: bool) -> None:
    rival = None if calibrate_and_evaluate else ("quantize_eval", "--quantize-eval")
    group.add_argument(
        "--qe-stats-file",
        "--qesf",
        metavar="PATH",
        help="file with calibration statistics; without one, quantization is dynamic (not for all layers)",
    )
    group.add_argument("--qe-dynamic", action="store_true", help="find ranges in each batch")
    group.add_argument(
        "--qe-calibration",
        action=_Value,
        rival=rival,
        type=_portion,
        metavar="PORTION_OF_TEST_SET",
        help="collect calibration statistics on this portion of the test set (0 to 1)",
    )
    group.add_argument(
        "--qe-config-file",
        "--qecf",
        metavar="PATH",
        help="YAML file with a PostTrainLinearQuantizer; all other --qe-... flags are ignored then",
    )


def _add_lapq(group: _Group) -> None:
    group.add_argument(
        "--qe-lapq", "--qe-coordinate-search", action="store_true", help="search scales that lower the loss (LAPQ)"
    )
    group.add_argument("--lapq-maxiter", type=_whole, metavar="N", help="iterations of the search at most")
    group.add_argument("--lapq-maxfev", type=_whole, metavar="N", help="evaluations of the model at most")
    group.add_argument("--lapq-method", default="Powell", metavar="NAME", help="method of scipy.optimize.minimize")
    group.add_argument(
        "--lapq-basinhopping", "--lapq-bh", action="store_true", help="search globally, with basin hopping"
    )
    group.add_argument(
        "--lapq-basinhopping-niter", "--lapq-bh-niter", type=_whole, default=100, metavar="N", help="hops (100)"
    )
    group.add_argument(
        "--lapq-init-mode",
        type=str.upper,
        choices=_INIT_MODES,
        default="NONE",
        help="where the search starts: a clipping, or what each layer's output loses least by in this norm",
    )
    group.add_argument(
        "--lapq-init-method", default="Powell", metavar="NAME", help="method that finds L1, L2 and L3 starts"
    )
    group.add_argument("--lapq-eval-size", type=_portion, default=1.0, metavar="PORTION", help="of the validation set")
    group.add_argument(
        "--lapq-eval-memoize-dataloader", action="store_true", help="keep the batches of the search in memory"
    )
    group.add_argument(
        "--lapq-search-clipping", action="store_true", help="search ranges (minimum and maximum) instead of scales"
    )


# -- the quantizer -----------------------------------------------------------------------------------------------------


def check_post_train_quant_args(args: argparse.Namespace) -> None:
    """Refuse flags that cannot go together and warn of flags without effect; nothing is loaded.

    Raises :class:`ArgumentError` with the flag in question.
    """
    value = _reader(args)
    if value("qe_config_file"):
        return
    clip = str(value("qe_clip_acts") or "none").lower()
    if clip == "n_std" and value("qe_clip_n_stds") is None:
        raise ArgumentError("--qe-clip-acts n_std needs --qe-clip-n-stds", argument=("qe_clip_n_stds",))
    if clip != "n_std" and value("qe_clip_n_stds") is not None:
        raise ArgumentError("--qe-clip-n-stds belongs to --qe-clip-acts n_std", argument=("qe_clip_n_stds",))
    if clip == "none" and value("qe_no_clip_layers"):
        _warn("--qe-no-clip-layers has no effect: nothing is clipped without --qe-clip-acts")
    if value("qe_bits_acts", 8) is None and value("qe_bits_wts", 8) is None:
        raise ArgumentError(
            "--qe-bits-acts 0 --qe-bits-wts 0 leaves nothing to quantize: give bits to one of them",
            argument=("qe_bits_acts",),
        )
    if value("qe_lapq") and value("qe_dynamic"):
        raise ArgumentError(
            "--qe-lapq searches scales of activations, which --qe-dynamic finds anew in each batch: give "
            "--qe-stats-file or --qe-calibration instead",
            argument=("qe_lapq",),
        )


def quantizer_from_args(
    cls: type[PostTrainLinearQuantizer], model: nn.Module, args: argparse.Namespace
) -> PostTrainLinearQuantizer:
    """What ``PostTrainLinearQuantizer.from_args`` does: a quantizer as the flags of ``args`` say.

    Flags that ``args`` lacks have their defaults. ``qe_stats_file`` may also hold the statistics themselves. Raises
    as :func:`check_post_train_quant_args` and the constructor do, and as the reader of schedules for
    ``--qe-config-file``.
    """
    check_post_train_quant_args(args)
    value = _reader(args)
    if value("qe_config_file"):
        return _from_file(cls, model, value("qe_config_file"))
    overrides: dict[str, dict[str, Any]] = {layer: {"clip_acts": "NONE"} for layer in value("qe_no_clip_layers") or ()}
    overrides |= {
        layer: {"bits_activations": None, "bits_weights": None} for layer in value("qe_no_quant_layers") or ()
    }
    named: dict[Any, Any] = dict(_MODES)
    shared = value("qe_mode") or LinearQuantMode.SYMMETRIC
    modes = {"activations": value("qe_mode_acts") or shared, "weights": value("qe_mode_wts") or shared}
    return cls(
        model,
        bits_activations=value("qe_bits_acts", 8),
        bits_parameters=value("qe_bits_wts", 8),
        bits_accum=value("qe_bits_accum", 32),
        overrides=overrides or None,
        mode={name: named.get(mode, mode) for name, mode in modes.items()},
        clip_acts=value("qe_clip_acts") or "none",
        per_channel_wts=bool(value("qe_per_channel")),
        model_activation_stats=value("qe_stats_file") or None,
        clip_n_stds=value("qe_clip_n_stds"),
        scale_approx_mult_bits=value("qe_scale_approx_bits"),
        save_fp_weights=bool(value("qe_save_fp_weights")),
    )


def _from_file(cls: type[PostTrainLinearQuantizer], model: nn.Module, path: str) -> PostTrainLinearQuantizer:
    # The reader of YAML files lies above this layer: it is looked up when a file was named, as registries do.
    read = importlib.import_module("distiller_ng.config").config_component_from_file_by_class
    quantizer: PostTrainLinearQuantizer = read(model, path, cls.__name__)
    return quantizer


def _reader(args: argparse.Namespace) -> Callable[..., Any]:
    def value(name: str, default: Any = None) -> Any:
        return getattr(args, name, default)

    return value


def _warn(text: str) -> None:
    warnings.warn(text, ScheduleWarning, stacklevel=4)


# -- how flags are read ------------------------------------------------------------------------------------------------


class _Exclusive(argparse.Action):
    """An argument that is refused after another one; ``rival`` is that one's destination and flag."""

    def __init__(self, *args: Any, rival: tuple[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rival = rival

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if self.rival is not None and getattr(namespace, self.rival[0], None):
            raise argparse.ArgumentError(self, f"not allowed with argument {self.rival[1]}")
        setattr(namespace, self.dest, values if self.nargs != 0 else True)


class _Flag(_Exclusive):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, **kwargs)


class _Value(_Exclusive):
    pass


def _mode(text: str) -> LinearQuantMode:
    if text not in _MODES:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode: choose from {', '.join(_MODES)}")
    return _MODES[text]


def _clipping(text: str) -> str:
    if text.upper() not in ClipMode.__members__:
        names = ", ".join(name.lower() for name in ClipMode.__members__)
        raise argparse.ArgumentTypeError(f"{text!r} is no way of clipping: choose from {names}")
    return text.lower()


def _bits(text: str) -> int | None:
    if not text.isdigit() or int(text) > 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bits: 1 to 32, or 0 for floating point")
    return int(text) or None


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text}")
    return int(text)


def _positive(text: str) -> float:
    return _number(text, "a number above 0", lambda value: 0 < value < float("inf"))


def _portion(text: str) -> float:
    return _number(text, "a number above 0 and up to 1", lambda value: 0 < value <= 1)


def _number(text: str, what: str, allowed: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not allowed(value):
        raise argparse.ArgumentTypeError(f"must be {what}, got {text}")
    return value
