"""The export form of a quantized model: floating point tensors and ``fake_quantize`` alone (layer 2).

Wrappers of post-training quantization simulate integers, and quantizers for training derive the grids of weights anew
in every pass. Exporters need neither: inside :func:`exporting` each grid is a pair of constants and each quantized
tensor is one ``torch.ops.distiller_ng.fake_quantize`` node of the traced program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from distiller_ng.errors import LifecycleError
from distiller_ng.graph.trace import evaluating
from distiller_ng.quantization._activations import PausedModule
from distiller_ng.quantization._derived import derive_, underive_
from distiller_ng.quantization._export_forms import (
    CarriedGrids,
    ExportedEmbedding,
    ExportedFakeQuantization,
    ExportedParamLayer,
    ExportedWrapper,
    ExportForm,
)
from distiller_ng.quantization._export_forms_qat import ExportedFold, ExportedLayer, ExportedObserver
from distiller_ng.quantization._weights import QuantizedLayer
from distiller_ng.quantization.binary import XnorActivation
from distiller_ng.quantization.clipped_activations import ClippedLinearQuantization, LearnedClippedLinearQuantization
from distiller_ng.quantization.fake_linear import FakeLinearQuantization
from distiller_ng.quantization.learned_step import LSQActivation
from distiller_ng.quantization.range_linear_fake import RangeLinearEmbeddingWrapper, RangeLinearFakeQuantWrapper
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm

__all__ = ["exporting"]

#: The first class a module is an instance of decides.
_FORMS: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], type[ExportForm]], ...] = (
    (QuantizedLayer, ExportedLayer),
    (SimulatedFoldedBatchNorm, ExportedFold),
    (RangeLinearQuantParamLayerWrapper, ExportedParamLayer),
    (RangeLinearQuantWrapper, ExportedWrapper),
    (RangeLinearEmbeddingWrapper, ExportedEmbedding),
    (RangeLinearFakeQuantWrapper, ExportedFakeQuantization),
    (
        (
            FakeLinearQuantization,
            LSQActivation,
            ClippedLinearQuantization,
            LearnedClippedLinearQuantization,
            XnorActivation,
        ),
        ExportedObserver,
    ),
)


@contextmanager
def exporting(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, ``model`` computes in its export form and in eval mode; afterwards it is what it was.

    Works for models of every quantizer, post-training and aware::

        with exporting(model):
            program = torch.export.export(model, (images,))

    Weights are constants ``fake_quantize(weight, step, zero_point)`` with values that lie on their grid already, biases
    stay in floating point, and an activation is quantized where the simulation does so: inputs that another quantized
    module made are not quantized twice. ``zero_point.dtype`` is the integer type (int8, uint8, int16, uint16). What has
    more than 16 bits, and activations whose range is found in each batch, stay in floating point.

    Outputs equal the simulation up to the rounding of accumulators and of approximated scales: a step of the output's
    grid for one module. A linear layer with weight 1 and ranges ``-1 .. 1`` (8 bits, symmetric) gives ``38 / 127.5``
    for 0.3, as the simulation does.

    Raises :class:`LifecycleError` when the model is in its export form already.
    """
    if any(isinstance(module, ExportForm) for module in model.modules()):
        raise LifecycleError("the model is in its export form already: leave the other exporting(model) first")
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        grids = CarriedGrids()
        for module in list(model.modules()):
            kind = _form_of(module)
            if kind is not None:
                stack.callback(_restored(module, kind))
                derive_(module, kind)
                with torch.no_grad():
                    module.begin(grids)  # type: ignore[operator]
        yield model


def _form_of(module: nn.Module) -> type[ExportForm] | None:
    if isinstance(module, PausedModule):
        return None
    return next((form for kinds, form in _FORMS if isinstance(module, kinds)), None)


def _restored(module: nn.Module, kind: type[ExportForm]) -> Callable[[], None]:
    """A function that puts ``module`` back as it is now."""
    changed = [part for part in (module, module._modules.get("wrapped_module")) if part is not None]
    kept = [(part, dict(part.__dict__), dict(part._parameters), dict(part._buffers)) for part in changed]
    unsaved = set(module._non_persistent_buffers_set)

    def restore() -> None:
        underive_(module, kind)
        for part, attributes, parameters, buffers in kept:
            for own, before in ((part._parameters, parameters), (part._buffers, buffers)):
                own.clear()
                own.update(before)  # type: ignore[arg-type]
            part.__dict__.clear()
            part.__dict__.update(attributes)
        module._non_persistent_buffers_set.clear()
        module._non_persistent_buffers_set.update(unsaved)

    return restore
