"""Layers that compute with quantized weights while their parameters stay what and where they are (layer 2).

A layer gets a subclass of its own class, made here: ``Conv2d`` becomes ``QuantizedConv2d``. Its parameters keep their
identity and their names, so optimizers, masks, state dicts and hooks do not notice; its ``forward`` is the original one
and sees quantized tensors in place of the parameters, with autograd history to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.ops.linear_quantization import QuantizationParameters
from distiller_ng.quantization._activations import touched
from distiller_ng.quantization._derived import Derived, derive_
from distiller_ng.quantization.q_utils import FP_BKP_PREFIX
from distiller_ng.quantization.weight_functions import uniform_grid

__all__ = [
    "QUANTIZABLE_LAYERS",
    "ParamQuantizationFn",
    "ParamToQuantize",
    "ParameterQuantization",
    "QuantizedLayer",
    "channel_axis",
    "check_shapes",
    "is_quantizable",
    "quantize_flow_",
    "quantize_parameter_",
    "quantized_layer_",
    "why_not_quantizable",
]

#: Layers whose ``weight`` and ``bias`` can be quantized, subclasses included.
QUANTIZABLE_LAYERS: tuple[type[nn.Module], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.Embedding),
)


class ParamToQuantize(NamedTuple):
    """One parameter to quantize, as a ``param_quantization_fn`` gets it.

    ``getattr(module, fp_attr_name)`` is the parameter in floating point and ``q_attr_name`` its name in the module;
    the two differ where a floating point copy is trained (``float_weight`` and ``weight``).
    """

    module: nn.Module
    module_name: str
    fp_attr_name: str
    q_attr_name: str
    num_bits: int


#: ``function(parameter, what it is) -> quantized tensor`` of the same shape, differentiable.
ParamQuantizationFn: TypeAlias = Callable[[Tensor, ParamToQuantize], Tensor]


@dataclass(frozen=True, slots=True)
class ParameterQuantization:
    """How one parameter of a layer is quantized in each forward pass.

    ``restores_zeros``: the function does not map 0 to 0 (DoReFa, binary weights), so zeros are put back after it:
    pruned weights stay pruned.
    """

    function: ParamQuantizationFn
    module_name: str
    num_bits: int
    restores_zeros: bool = False

    def __call__(self, module: nn.Module, name: str, parameter: Tensor) -> Tensor:
        """The quantized ``parameter``, in its dtype, with autograd history to it."""
        quantized = self.function(parameter, self.described(module, name))
        if self.restores_zeros:
            quantized = _with_zeros_of(parameter, quantized)
        return quantized if quantized.dtype == parameter.dtype else quantized.to(parameter.dtype)

    def described(self, module: nn.Module, name: str) -> ParamToQuantize:
        """What the function is told about the parameter ``name`` of ``module``."""
        return ParamToQuantize(module, self.module_name, FP_BKP_PREFIX + name, name, self.num_bits)

    def __deepcopy__(self, memo: dict[int, Any]) -> ParameterQuantization:
        return self  # immutable, and the function may belong to a quantizer that no model's copy should drag along


class QuantizedLayer(Derived):
    """What the subclasses made here add to a layer's own class.

    Attributes: ``quantized_parameters`` maps ``weight`` and ``bias`` to how they are quantized; ``is_quantizing`` is
    False until training with quantization starts; ``float_weight`` and ``float_bias`` are the parameters, whatever
    ``weight`` shows (Distiller's names). Where there are children ``input_quant`` and ``output_quant``, the first
    positional input and the output go through them. With a ``folded_norm`` the layer also does what the batch norm
    behind it did, and what is quantized are weight and bias with the norm folded in.
    """

    prefix: ClassVar[str] = "Quantized"
    quantized_parameters: dict[str, ParameterQuantization]
    is_quantizing: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own ``forward`` on quantized parameters."""
        if not self.is_quantizing:
            return touched(super().forward(*args, **kwargs), self)
        before, after = self._modules.get("input_quant"), self._modules.get("output_quant")
        if before is not None and args:
            args = (before(args[0]), *args[1:])
        fold = self.__dict__.get("folded_norm")
        output = self._on_quantized_parameters(*args, **kwargs) if fold is None else fold(self, *args)
        return output if after is None else after(output)

    def _on_quantized_parameters(self, *args: Any, **kwargs: Any) -> Any:
        # An instance attribute is found before nn.Module looks among its parameters, so whatever the layer's forward
        # does with self.weight, it uses this tensor. torch.export and torch.compile follow it.
        own = self.__dict__
        quantized = {name: self.quantized(name) for name in self.quantized_parameters}
        shown = {name: own[name] for name in quantized if name in own}
        own.update((name, tensor) for name, tensor in quantized.items() if tensor is not None)
        try:
            return super().forward(*args, **kwargs)
        finally:
            for name in quantized:
                own.pop(name, None)
            own.update(shown)

    def quantized(self, name: str) -> Tensor | None:
        """The tensor the layer computes with in place of the parameter ``name``; None for a bias it does not have."""
        parameter = self.folded(name)
        return None if parameter is None else self.quantized_parameters[name](self, name, parameter)

    def folded(self, name: str) -> Tensor | None:
        """The parameter, or what it becomes with the batch norm folded in."""
        fold = self.__dict__.get("folded_norm")
        folded: Tensor | None = self.full_precision(name) if fold is None else fold.folded(self)[name]
        return folded

    def quantization_parameters(self, name: str = "weight") -> QuantizationParameters | None:
        """The grid of a parameter as it is now, as exporters need it; None where the method has no uniform one."""
        how, parameter = self.quantized_parameters.get(name), self.folded(name)
        grid = None if how is None else uniform_grid(how.function)
        if how is None or grid is None or parameter is None:
            return None
        found: QuantizationParameters = grid(parameter, how.described(self, name))
        return found

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with torch.no_grad():  # what a function notes down about the parameter belongs to its present values
            for name, how in self.quantized_parameters.items():
                if hasattr(how.function, "store") and self.folded(name) is not None:
                    self.quantized(name)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def full_precision(self, name: str) -> Tensor | None:
        """The parameter itself."""
        found = self._parameters.get(name)
        # Replicas of DataParallel hold plain tensors instead of parameters.
        return self.__dict__.get(name) if found is None else found

    def publish(self, name: str) -> None:
        """Show the quantized tensor as the attribute ``name``, as Distiller does; ``float_<name>`` is the parameter."""
        quantized = self.quantized(name)
        if quantized is not None:
            self.__dict__[name] = quantized

    def withdraw(self) -> None:
        """Show the parameters themselves again."""
        for name in self.quantized_parameters:
            if self._parameters.get(name) is not None:
                self.__dict__.pop(name, None)

    @property
    def float_weight(self) -> Tensor | None:
        """The weight in floating point: the parameter the optimizer trains."""
        return self._float_copy("weight")

    @property
    def float_bias(self) -> Tensor | None:
        """The bias in floating point; no such attribute where the bias is not quantized."""
        return self._float_copy("bias")

    def _float_copy(self, name: str) -> Tensor | None:
        if name not in self.quantized_parameters:
            raise AttributeError(f"{type(self).__name__} has no attribute {FP_BKP_PREFIX + name!r}")
        return self.full_precision(name)

    def extra_repr(self) -> str:
        """The layer's own description, and the bits."""
        bits = ", ".join(f"{name}_bits={how.num_bits}" for name, how in self.quantized_parameters.items())
        return ", ".join(part for part in (super().extra_repr(), bits) if part)

    def portable_state(self) -> dict[str, Any]:
        """Without tensors that :meth:`publish` shows: they have a history, and belong to these parameters."""
        own = dict(self.__dict__)
        for name in self.quantized_parameters:
            if self._parameters.get(name) is not None:
                own.pop(name, None)
        return own


def quantized_layer_(module: nn.Module) -> QuantizedLayer:
    """``module`` itself, in place made an instance of the quantized subclass of its class; of it only that changes.

    Raises :class:`LifecycleError` for a layer without shapes yet (``LazyConv2d``).
    """
    check_shapes(module)
    if not isinstance(module, QuantizedLayer):
        derive_(module, QuantizedLayer)
        module.__dict__.update(quantized_parameters={}, is_quantizing=True)
    return cast(QuantizedLayer, module)


def quantize_parameter_(module: nn.Module, name: str, how: ParameterQuantization) -> QuantizedLayer:
    """Make ``module``, in place, compute with the quantized parameter ``name`` from now on, and return it.

    Raises :class:`ArgumentError` for a parameter it does not have.
    """
    if name not in module._parameters:
        raise ArgumentError(f"{type(module).__name__} has no parameter {name!r}")
    layer = quantized_layer_(module)
    layer.quantized_parameters[name] = how
    return layer


def quantize_flow_(
    module: nn.Module, *, before: nn.Module | None = None, after: nn.Module | None = None
) -> QuantizedLayer:
    """Make the first input of ``module``, in place, pass through ``before`` and its output through ``after``.

    They become its children ``input_quant`` and ``output_quant``; all other names stay.
    """
    layer = quantized_layer_(module)
    for name, part in (("input_quant", before), ("output_quant", after)):
        if part is not None:
            layer.add_module(name, part.train(module.training))
    return layer


def _with_zeros_of(parameter: Tensor, quantized: Tensor) -> Tensor:
    """``quantized`` with zeros where ``parameter`` has them; gradients pass there too, or nothing could grow back."""
    shift = torch.where(
        parameter == 0, quantized.detach(), torch.zeros((), dtype=quantized.dtype, device=quantized.device)
    )
    return quantized - shift


def check_shapes(module: nn.Module) -> None:
    """Raise :class:`LifecycleError` for a layer without shapes yet (``LazyConv2d``): it would change its class."""
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise LifecycleError(f"{type(module).__name__} has no weights yet: run the model once before quantizing it")


def channel_axis(module: nn.Module, parameter: Tensor) -> int | None:
    """The axis of the output channels of a layer's weight; None for a bias, and where there is no such single axis.

    0 for linear layers and convolutions, 1 for transposed convolutions; embeddings are quantized as a whole, because
    later layers use their rows as activations.
    """
    if parameter.dim() < 2 or isinstance(module, nn.Embedding):
        return None
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return 1 if module.groups == 1 else None
    return 0


def is_quantizable(module: nn.Module) -> bool:
    """Whether the ``weight`` and ``bias`` of a layer can be quantized."""
    return isinstance(module, QUANTIZABLE_LAYERS) and not why_not_quantizable(module)


def why_not_quantizable(module: nn.Module) -> str:
    """Why the weights of a module that has some stay in floating point; empty for any other."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "in floating point: the attention around it computes with the weight itself"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase | nn.Bilinear | nn.EmbeddingBag):
        return f"in floating point: weights of {type(module).__name__} are not quantized"
    if isinstance(module, torch.jit.ScriptModule):
        return "in floating point: a scripted module cannot be changed"
    if isinstance(module, QUANTIZABLE_LAYERS) and "weight" not in module._parameters:
        return "in floating point: its weight is computed from other parameters (weight_norm, parametrize)"
    return ""
