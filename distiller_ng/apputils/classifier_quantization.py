"""Post-training quantization in the image-classification application: ``--quantize-eval`` and its flags (layer 5)."""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.apputils.classifier_activations import acts_quant_stats_collection
from distiller_ng.apputils.classifier_batches import Criterion, run_model, to_device, unpacked
from distiller_ng.apputils.classifier_batches import loss_of as loss_of_batch
from distiller_ng.apputils.classifier_exits import OutputReader
from distiller_ng.apputils.classifier_exporting import converted_model
from distiller_ng.apputils.classifier_loops import Loggers, Scores, load_data, test
from distiller_ng.apputils.classifier_loops import evaluate_model as evaluate_as_it_is
from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, listed
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs, with_batch
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import make_non_parallel_copy, model_device
from distiller_ng.quantization.base import quantization_of
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_arguments import add_post_train_quant_args, check_post_train_quant_args
from distiller_ng.quantization.ptq_coordinate_search import cmdline_args_to_dict, ptq_coordinate_search

__all__ = [
    "check_quantization_flags",
    "evaluate_model",
    "idle_quantization_flags",
    "lapq_search",
    "quantize_and_test_model",
]

logger = logging.getLogger("distiller_ng.app")


def check_quantization_flags(args: argparse.Namespace) -> None:
    """Refuse ``--quantize-eval`` and ``--qe-...`` flags that would do nothing, before anything is loaded.

    Raises :class:`ArgumentError`.
    """
    flags = (("quantize_eval", "--quantize-eval"), ("qe_lapq", "--qe-lapq"))
    wanted = [flag for name, flag in flags if getattr(args, name, False)]
    if wanted and not args.evaluate:
        message = f"{wanted[0]} quantizes the model that is evaluated: add --evaluate"
        raise ArgumentError(message, argument=("evaluate",))
    if not wanted and getattr(args, "qe_convert_pytorch", False) and not args.evaluate:
        raise ArgumentError("--qe-convert-pytorch needs --evaluate", argument=("qe_convert_pytorch",))
    if wanted:
        check_post_train_quant_args(args)


def idle_quantization_flags(args: argparse.Namespace) -> list[str]:
    """Flags of quantization that are set and do nothing, because nothing is quantized: ``["--qe-bits-wts"]``."""
    if (
        getattr(args, "quantize_eval", False)
        or getattr(args, "qe_lapq", False)
        or getattr(args, "qe_calibration", None)
    ):
        return []
    parser = argparse.ArgumentParser()
    add_post_train_quant_args(parser, add_lapq_args=True)
    needed = ("qe_convert_pytorch", "qe_pytorch_backend") if getattr(args, "qe_convert_pytorch", False) else ()
    return [
        "--" + name.replace("_", "-")
        for name, default in vars(parser.parse_args([])).items()
        if name not in needed and getattr(args, name, default) != default
    ]


def evaluate_model(
    test_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    activations_collectors: Any = None,
    args: argparse.Namespace | None = None,
    scheduler: CompressionScheduler | None = None,
    *,
    logdir: str | os.PathLike[str] | None = None,
    calibration_loader: Any = None,
) -> Scores:
    """What ``--evaluate`` does: measure the model as it is, quantized (``--quantize-eval``), or converted to integers.

    The scheduler's masks are applied first; ``calibration_loader`` is that of :func:`quantize_and_test_model`, whose
    errors are raised.
    """
    wanted = args or argparse.Namespace()
    if getattr(wanted, "quantize_eval", False) or getattr(wanted, "qe_lapq", False):
        return quantize_and_test_model(
            test_loader,
            model,
            criterion,
            wanted,
            loggers,
            scheduler,
            logdir=logdir,
            calibration_loader=calibration_loader,
        )
    if getattr(wanted, "qe_convert_pytorch", False):
        if scheduler is not None:
            scheduler.mask_all_weights()
        if quantization_of(unwrap(model)) is None:
            raise ArgumentError(
                "--qe-convert-pytorch converts a quantized model: add --quantize-eval, or load a quantized checkpoint",
                argument=("qe_convert_pytorch",),
            )
        real = converted_model(make_non_parallel_copy(model).cpu().eval(), _one_batch(test_loader), wanted, logdir)
        return test(test_loader, real, criterion, loggers, args=wanted)
    idle = idle_quantization_flags(wanted)
    if idle:
        logger.warning("no effect without --quantize-eval: %s", listed(idle))
    return evaluate_as_it_is(test_loader, model, criterion, loggers, activations_collectors, wanted, scheduler)


def quantize_and_test_model(
    test_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    args: argparse.Namespace,
    loggers: Loggers = None,
    scheduler: CompressionScheduler | None = None,
    save_flag: bool = True,
    *,
    logdir: str | os.PathLike[str] | None = None,
    calibration_loader: Any = None,
) -> Scores:
    """Quantize a copy of ``model`` as the ``--qe-...`` flags say and measure it: ``(top1, top5, mean loss)``.

    ``--qe-calibration`` collects statistics on that share of the test set, or on ``calibration_loader`` (which
    ``--qe-lapq`` then measures with, too), first; without it, a statistics file or a
    configuration file, ranges are found in each batch. The scheduler's masks are applied to ``model`` first. With
    ``save_flag`` and a folder ``logdir``: ``acts_quantization_stats.yaml`` where statistics were collected,
    ``layer_quant_params.yaml``, and the checkpoint ``[name_]quantized_checkpoint.pth.tar``, which ``--resume-from``
    loads. ``--qe-convert-pytorch`` measures the model converted to real integers.

    Raises :class:`ArgumentError` for flags that cannot go together and a model that is quantized already, and what the
    quantizer raises.
    """
    check_post_train_quant_args(args)
    earlier = quantization_of(unwrap(model))
    if earlier is not None:
        raise ArgumentError(
            f"the model is quantized already, by {earlier.name}: evaluate it without --quantize-eval",
            argument=("quantize_eval",),
        )
    if scheduler is not None:
        scheduler.mask_all_weights()
    folder = logdir if save_flag else None
    quantized = make_non_parallel_copy(model).eval()
    wanted = copy.copy(args)
    if getattr(args, "qe_calibration", None):
        wanted.qe_stats_file = acts_quant_stats_collection(
            quantized, criterion, loggers, args, calibration_loader, save_to_file=folder is not None, logdir=folder
        )
    batch = _one_batch(test_loader)
    example = with_batch(as_example_inputs(to_device(batch, model_device(quantized))), 1)
    quantizer = PostTrainLinearQuantizer.from_args(quantized, wanted)
    if getattr(args, "qe_lapq", False):
        lapq_search(quantizer, example, criterion, args, loader=calibration_loader)
    else:
        quantizer.prepare_model(example)
    tested = quantized
    if getattr(args, "qe_convert_pytorch", False):
        tested = converted_model(quantized.cpu(), batch, args, folder)
    scores = test(test_loader, tested, criterion, loggers, args=args)
    if folder is not None:
        name = f"{args.name}_quantized" if getattr(args, "name", None) else "quantized"
        logger.info("scales of all layers: %s", quantizer.save_per_layer_parameters(folder))
        save_checkpoint(
            0, getattr(args, "arch", None), quantized, extras={"quantized_top1": scores[0]}, name=name, dir=Path(folder)
        )
    return scores


def lapq_search(
    quantizer: PostTrainLinearQuantizer,
    dummy_input: ExampleInputsLike,
    criterion: Criterion,
    args: argparse.Namespace,
    *,
    loader: Any = None,
) -> nn.Module:
    """Search scales that make the loss on the validation set, or ``loader``, lowest, as the ``--lapq-...`` flags say.

    Raises :class:`DatasetError`, and what :func:`ptq_coordinate_search` raises.
    """
    wanted = copy.copy(args)
    wanted.effective_valid_size = getattr(args, "lapq_eval_size", 1.0)
    loader = loader or load_data(wanted, fixed_subset=True, load_train=False, load_test=False)
    batches = list(loader) if getattr(args, "lapq_eval_memoize_dataloader", False) else loader

    def loss_of(model: nn.Module) -> float:
        device, total, count = model_device(model), 0.0, 0
        outputs_of = OutputReader(model, criterion)
        for batch in batches:
            inputs, target = unpacked(batch, "validation")
            output = outputs_of(run_model(model, to_device(inputs, device), "validation"))[-1]
            total += len(target) * float(loss_of_batch(criterion, output, target.to(device)))
            count += len(target)
        return total / count

    seed = getattr(args, "seed", None) or 0
    model, _ = ptq_coordinate_search(quantizer, dummy_input, loss_of, seed=seed, **cmdline_args_to_dict(args))
    return model


def _one_batch(loader: Any) -> Any:
    """The inputs of the first batch: a tensor, or a tuple or mapping of them."""
    batches: Iterator[Any] = iter(loader)
    return unpacked(next(batches), "test")[0]
