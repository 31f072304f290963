"""Quantization-aware training by schemes: which tensors of which layers, as recipes write it (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters
from distiller_ng.quantization._configuration import mark
from distiller_ng.quantization._layer_choice import check_names, choose_layers
from distiller_ng.quantization._legacy_schemes import LEGACY, scheme_of_legacy
from distiller_ng.quantization._plan import PlanRow
from distiller_ng.quantization._weights import ParamToQuantize, channel_axis, quantize_flow_
from distiller_ng.quantization.activations import FakeLinearQuantization
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.qat_range_linear import QuantAwareTrainRangeLinearQuantizer, RangeLinearWeights
from distiller_ng.quantization.schemes import QuantizationScheme, SchemeLike, TensorScheme
from distiller_ng.quantization.weight_functions import linear_weight_parameters
from distiller_ng.registry import RecipeTag

__all__ = ["SchemeQuantizer"]

_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, slots=True)
class _SchemeWeights(RangeLinearWeights):
    """Each layer's weight by its own scheme."""

    schemes: Mapping[str, TensorScheme]

    def grid(self, parameter: Tensor, meta: ParamToQuantize) -> QuantizationParameters:
        """Step, zero point and integer range for the parameter as it is."""
        scheme = self.schemes[canonical_name(meta.module_name)]
        axis = channel_axis(meta.module, parameter) if scheme.channel else None
        return linear_weight_parameters(parameter, meta, scheme.mode(signed=True), axis=axis)


@QUANTIZERS.register(
    "SchemeQuantizer",
    injected=("model", "optimizer"),
    recipe_tag=RecipeTag(
        "QuantizationModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        ends="never",
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
        policy_args={
            "disable_quantization_observer_epoch": "disable_observer_epoch",
            "freeze_bn_stats_epoch": "freeze_bn_epoch",
        },
        ignored={
            "model_fuse_fn_kwargs": "norms are found on the model's graph",
            "num_calibration_steps": "ranges begin with the first training minibatch",
        },
    ),
)
class SchemeQuantizer(QuantAwareTrainRangeLinearQuantizer):
    """Training with fake quantization of the inputs, weights and outputs of convolutions, linear layers and embeddings.

    ``scheme``: ``default``, ``deepsparse``, ``tensorrt``, or ``{input_activations, weights, output_activations}``, each
    null or ``{num_bits: 8, symmetric: false, strategy: tensor | channel}``. Default: 8 bits, asymmetric inputs,
    symmetric weights, outputs as they are. ``scheme_overrides``: ``{type, module or part of the model: scheme}``.
    ``ignore``: types, modules and parts that stay in floating point. ``strict``: names that match nothing are errors.
    ``submodules``: only these parts. ``fuse``: weights are quantized with the batch norm behind their layer folded in,
    as they will be deployed. ``ema_decay``: of the ranges of activations, which follow a moving average.

    Source: SparseML's ``QuantizationModifier``; B. Jacob et al., https://arxiv.org/abs/1712.05877. Inputs from -1 to 2
    have steps of 3 / 255, weights of at most 0.5 in magnitude steps of 0.5 / 127.5::

        quantizers:
          int8:
            class: SchemeQuantizer
            ignore: [classifier, LayerNorm]
            scheme_overrides:
              features.0: {input_activations: null, weights: {num_bits: 8, symmetric: true, strategy: channel}}
        policies:
          - quantizer: {instance_name: int8, args: {freeze_bn_epoch: 8, disable_observer_epoch: 7}}
            starting_epoch: 5
            ending_epoch: 10
            frequency: 1

    Raises :class:`ArgumentError` for schemes that cannot be, :class:`TargetError` for names that match nothing.
    """

    output_types: ClassVar[tuple[type[nn.Module], ...]] = ()
    tolerates_missing_norms: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheme: SchemeLike = None,
        *,
        scheme_overrides: Mapping[str, SchemeLike] | None = None,
        ignore: Sequence[str] | None = None,
        submodules: Sequence[str] | None = None,
        strict: bool = True,
        fuse: bool = True,
        ema_decay: float = 0.99,
    ) -> None:
        for name, flag in (("strict", strict), ("fuse", fuse)):
            if not isinstance(flag, bool):
                raise ArgumentError(f"{name} is true or false, got {flag!r}", argument=(name,))
        if scheme_overrides is not None and not isinstance(scheme_overrides, Mapping):
            message = f"scheme_overrides maps modules or types to schemes, got {scheme_overrides!r}"
            raise ArgumentError(message, argument=("scheme_overrides",))
        self.schemes = choose_layers(
            model,
            QuantizationScheme.read(scheme),
            scheme_overrides or {},
            ignore=check_names("ignore", ignore),
            submodules=check_names("submodules", submodules),
            strict=strict,
        )
        weights = {name: found.weights for name, found in self.schemes.items() if found.weights is not None}
        super().__init__(
            model,
            optimizer,
            None,
            None,
            None,
            {name: {"bits_weights": found.num_bits} for name, found in weights.items()},
            mode={"activations": LinearQuantMode.ASYMMETRIC_UNSIGNED, "weights": LinearQuantMode.SYMMETRIC},
            ema_decay=ema_decay,
            quantize_inputs=False,
            fold_bn=fuse and any(isinstance(module, _NORMS) for module in unwrap(model).modules()),
        )
        self.param_quantization_fn = _SchemeWeights(self.mode_weights, False, weights)

    def extra_rows(self) -> list[PlanRow]:
        """Inputs and outputs of the layers."""
        rows = []
        for name, scheme in self.schemes.items():
            for part, found in (("input", scheme.input_activations), ("output", scheme.output_activations)):
                if found is not None and (part == "output" or not self._takes_integers(name)):
                    rows.append(PlanRow(f"({part} of {name})", "", None, None, found.num_bits, "scheme"))
        return rows

    def _quantize_flows(self) -> None:
        modules = {canonical_name(name): module for name, module in self.model.named_modules()}
        for name, scheme in self.schemes.items():
            before = None if self._takes_integers(name) else self._placed(scheme.input_activations)
            after = self._placed(scheme.output_activations)
            if before is not None or after is not None:
                mark(quantize_flow_(modules[name], before=before, after=after), self.config)
        super()._quantize_flows()

    def _placed(self, scheme: TensorScheme | None) -> FakeLinearQuantization | None:
        if scheme is None:
            return None
        quantizer = FakeLinearQuantization(scheme.num_bits, scheme.mode(signed=False), self.ema_decay)
        self._place(quantizer)
        return quantizer

    def _takes_integers(self, name: str) -> bool:
        modules = {canonical_name(known): module for known, module in unwrap(self.model).named_modules()}
        return isinstance(modules[name], nn.Embedding)

    @classmethod
    def from_recipe(cls, properties: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
        """See :class:`~distiller_ng.registry.RecipeTag`; the older framework's properties become a scheme."""
        arguments = dict(properties)
        fuse = arguments.pop("model_fuse_fn_name", None)
        arguments["fuse"] = fuse != "no_fuse" and arguments.get("scheme") != "tensorrt"
        if fuse not in (None, "none", "null", "conv_bn_relus", "no_fuse"):
            note(f"model_fuse_fn_name {fuse!r}: batch norms are folded as the graph says, that method is not called")
        older = {name: arguments.pop(name) for name in LEGACY if name in arguments}
        if not older:
            return arguments
        newer = [name for name in ("scheme", "scheme_overrides", "ignore", "strict") if name in arguments]
        if newer:
            message = (
                f"{newer[0]} does not go with {', '.join(older)}: these are properties of an older QuantizationModifier"
            )
            raise ArgumentError(message, argument=(newer[0],))
        return {**arguments, **scheme_of_legacy(older, note)}

    @classmethod
    def to_recipe(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The reverse: recipes say ``model_fuse_fn_name: no_fuse`` for ``fuse: false``, which tensorrt implies."""
        properties = dict(arguments)
        if properties.pop("fuse", True) is False and properties.get("scheme") != "tensorrt":
            properties["model_fuse_fn_name"] = "no_fuse"
        return properties
