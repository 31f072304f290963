"""What every quantizer is: who gets which bits, and how a model comes to compute with them (layer 2)."""

from __future__ import annotations

import logging
import warnings
from abc import ABC
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError, LifecycleError, ScheduleWarning
from distiller_ng.ops.linear_quantization import check_bits
from distiller_ng.quantization._configuration import QuantizerConfig, constructor_arguments, mark, quantization_of
from distiller_ng.quantization._late_parameters import average_gradients
from distiller_ng.quantization._overrides import Overrides
from distiller_ng.quantization._plan import PlanRow, QuantPlan
from distiller_ng.quantization._planning import Planner
from distiller_ng.quantization._preparing import QuantizerPreparation
from distiller_ng.quantization._replacement import ReplaceFn
from distiller_ng.quantization._weights import (
    ParameterQuantization,
    ParamQuantizationFn,
    ParamToQuantize,
    quantize_parameter_,
)
from distiller_ng.quantization.exporters import ExportReport, PathLike, export_issues, export_model
from distiller_ng.quantization.integer_models import convert_distiller_ptq_model_to_pytorch
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.registry import Registry

__all__ = ["QUANTIZERS", "Quantizer", "quantization_of"]

QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "distiller_ng.quantization")

logger = logging.getLogger(__name__)
_BITS = {"bits_activations": "acts", "bits_weights": "wts", "bits_bias": "bias"}


class Quantizer(QuantizerPreparation, ABC):
    """Base of all quantizers.

    ``bits_activations``: bits of activations, wherever no override says otherwise; None leaves them in floating point.
    ``bits_weights``: the same for weights. ``bits_bias``: the same for biases. ``overrides`` maps patterns over module
    names to other bits, and to settings of what replaces the module::

        overrides:
          conv1: {bits_weights: null, bits_activations: null}   # leave it alone
          'layer1\\.\\d\\.conv1': {bits_weights: 2}

    Patterns match whole names (without ``module.``); the first one wins, an exact name beats all. Weights are quantized
    in convolutions, linear layers and embeddings; activations in the modules the subclass replaces.

    ``train_with_fp_copy``: the parameters stay in floating point, and every forward pass computes with quantized ones
    (needs ``optimizer``); else :meth:`quantize_params` writes quantized values into the parameters. Parameters keep
    their identity and their names either way; ``float_weight`` is Distiller's name for the parameter.

    A complete one, which rounds weights to multiples of ``2**-bits``::

        @QUANTIZERS.register("GridQuantizer", injected=("model", "optimizer"))
        class GridQuantizer(Quantizer):
            def __init__(self, model, optimizer, bits_weights=4, overrides=None):
                super().__init__(model, optimizer, None, bits_weights, None, overrides, train_with_fp_copy=True)
                self.param_quantization_fn = to_grid      # to_grid(parameter, what_it_is) -> tensor
                self.replacement_factory[nn.ReLU] = ...   # function(module, name, module_qbits_map) -> module

    Attributes: ``module_qbits_map`` ``{module name: QBits(acts, wts, bias)}``, ``module_overrides_map`` ``{name: other
    settings}``, ``params_to_quantize``, ``replacement_factory``, ``replacement_blacklist``, ``param_quantization_fn``.
    Raises :class:`ArgumentError` for bits, patterns or settings that cannot be, each with its path.
    """

    #: Whether freezing batch norms where there are none is a warning only.
    tolerates_missing_norms: ClassVar[bool] = False
    #: Whether zeros (pruned weights) are put back after ``param_quantization_fn``, because it does not map 0 to 0.
    restores_zeros: ClassVar[bool] = False

    _arguments: dict[str, Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Quantizer:
        """Note the arguments, for :attr:`config`."""
        quantizer = super().__new__(cls)
        quantizer._arguments = constructor_arguments(cls, args, kwargs)
        return quantizer

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        bits_activations: int | None = None,
        bits_weights: int | None = None,
        bits_bias: int | None = None,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        train_with_fp_copy: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
        if train_with_fp_copy and optimizer is None:
            raise ArgumentError(
                "an optimizer is needed to train with a floating point copy of the weights", argument=("optimizer",)
            )
        self.model, self.optimizer, self.train_with_fp_copy = model, optimizer, train_with_fp_copy
        given = {"bits_activations": bits_activations, "bits_weights": bits_weights, "bits_bias": bits_bias}
        self.default_qbits = QBits(*(self.checked_bits(name, value, (name,)) for name, value in given.items()))
        self._overrides = Overrides.of(overrides)
        self.overrides = OrderedDict(self._overrides.settings)
        self.replacement_factory: dict[type[nn.Module], ReplaceFn | None] = {}
        self.default_repalcement_fn: ReplaceFn | None = None  # Distiller's spelling
        self.replacement_blacklist: list[type[nn.Module]] = [nn.Identity]
        self.param_quantization_fn: ParamQuantizationFn | None = None
        self.params_to_quantize: list[ParamToQuantize] = []
        self.modules_processed: OrderedDict[nn.Module, tuple[str, nn.Module | None]] = OrderedDict()
        self.adjacency_map: Any = None
        self.layout: dict[str, Any] = {}
        self.is_prepared, self.is_enabled, self.observes = False, True, True
        self.is_waiting, self.bn_is_frozen, self.is_scheduled = False, False, False
        self.module_qbits_map: OrderedDict[str, QBits] = OrderedDict()
        self.module_overrides_map: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._planner = self._assign_overrides()
        self._plan: QuantPlan | None = None  # as it was before the model changed

    # -- who gets which bits ----------------------------------------------------------------------------------------

    def checked_bits(self, setting: str, bits: Any, argument: Sequence[str]) -> int | None:
        """``bits`` for ``bits_weights``, ``bits_activations`` or ``bits_bias``: None or 1..32.

        Override it for methods that work with few bits only. Raises :class:`ArgumentError` that carries ``argument``.
        """
        if bits is None:
            return None
        try:
            return check_bits(bits, argument=setting)
        except ArgumentError as error:
            raise ArgumentError(f"{error}, or null for floating point", argument=argument) from None

    def _assign_overrides(self) -> Planner:
        """Fill the two maps; warns of odd patterns and raises :class:`TargetError` for those that match nothing."""
        planner = Planner.of(self.model, self._overrides)
        for note in planner.notes:
            warnings.warn(note, ScheduleWarning, stacklevel=3)
        entries = {key: self._split(key, settings) for key, settings in self.overrides.items()}
        for name, module in self.model.named_modules():
            bits, rest = entries[planner.rules[name]] if name in planner.rules else ({}, {})
            self._add_qbits_entry(name, module, self.default_qbits._replace(**bits))
            self.module_overrides_map[name] = dict(rest)
        return planner

    def _split(self, key: str, settings: Mapping[str, Any]) -> tuple[dict[str, int | None], dict[str, Any]]:
        """The bits an override sets, and its other settings."""
        bits = {
            _BITS[name]: self.checked_bits(name, value, ("overrides", key, name))
            for name, value in settings.items()
            if name in _BITS
        }
        return bits, {name: value for name, value in settings.items() if name not in _BITS}

    def plan(self, model: nn.Module | None = None) -> QuantPlan:
        """Who will get which bits, with every check done and nothing changed; ``print(quantizer.plan())``.

        Raises :class:`TargetError` for overrides that match nothing and :class:`OverrideTypeError` (a ``TypeError``)
        for settings nobody takes. ``model`` may be left out; another one than the quantizer's raises
        :class:`ArgumentError`.
        """
        if model is not None and model is not self.model:
            raise ArgumentError("this quantizer belongs to another model: make one for the model to plan")
        if self._plan is None:
            return self._planner.plan(self, is_done=quantization_of(self.model) is not None)
        return self._plan

    def extra_rows(self) -> list[PlanRow]:
        """Rows of the plan that belong to no module, e.g. the model's inputs."""
        return []

    def extra_notes(self) -> list[str]:
        """Warnings of the plan that only this quantizer knows."""
        return []

    @property
    def config(self) -> QuantizerConfig:
        """What a checkpoint must hold to prepare a fresh model in the same way."""
        name = type(self).__name__
        known = name in QUANTIZERS and QUANTIZERS.get(name).cls is type(self)
        return QuantizerConfig(name, self._arguments if known else None, dict(self.layout))

    # -- changing the model -----------------------------------------------------------------------------------------

    def prepare_model(self, dummy_input: Any = None) -> nn.Module:
        """Put the quantization into the model and return the model; new parameters join the optimizer.

        ``dummy_input`` (a tensor, or a tuple of the positional arguments) is what quantizers need that follow the data
        flow. Raises :class:`LifecycleError` when called twice or for a model quantized otherwise before; the model is
        unchanged then.
        """
        if self.is_prepared:
            raise LifecycleError("prepare_model can be called once: this model is quantized already")
        earlier = quantization_of(self.model)
        before = set(self.model.parameters())
        if earlier is None:
            self._prepare(dummy_input)
        elif self.config.arguments is None or (earlier.name, earlier.arguments) != (
            self.config.name,
            self.config.arguments,
        ):
            raise LifecycleError(
                f"the model is already quantized by {earlier.name} with {earlier.arguments}: use the same settings, or "
                "start from the floating point model"
            )
        else:  # by a checkpoint's record
            self.layout = dict(earlier.layout)
            self._find_parameters()
            self.load_state_dict(self.switches_of(self.model))
        self.is_prepared = True
        if any(isinstance(module, DistributedDataParallel) for module in self.model.modules()):
            # The wrapper took stock of the parameters when it was made.
            average_gradients(parameter for parameter in self.model.parameters() if parameter not in before)
        self._extend_optimizer()
        self._post_prepare_model()
        if not self.is_scheduled:  # else the policy begins when it is time
            self._report_lost_layers()
        return self.model

    def _prepare(self, dummy_input: Any) -> None:
        plan = self._plan = self.plan()
        for text in plan.warnings:
            warnings.warn(text, ScheduleWarning, stacklevel=4)
        logger.info("%s", plan)
        self._pre_prepare_model(dummy_input)
        self._replace_modules()
        self._quantize_flows()
        if not self.train_with_fp_copy:
            self._find_parameters()
            return
        for module, name, parameter, bits in self._parameters():
            self._prepare_parameter(module, name, parameter, bits)
            how = ParameterQuantization(self._param_fn(), name, bits, self.restores_zeros)
            mark(quantize_parameter_(module, parameter, how), self.config)
        self._find_parameters()

    # -- for a runtime ------------------------------------------------------------------------------------------------

    def convert(
        self, target: str, path: PathLike | None = None, dummy_input: Any = None, **options: Any
    ) -> ExportReport:
        """The quantized model as a file for ``target`` (``"onnx"``, ``"openvino"``, ``"torchao"`` ...), that computes
        with integers; ``report.model`` runs it. See :func:`export_model`.

        Raises :class:`LifecycleError` before :meth:`prepare_model`, and what :func:`export_model` raises.
        """
        return export_model(self._prepared(), target, dummy_input, path, **options)

    def issues(self, target: str, dummy_input: Any, **options: Any) -> list[str]:
        """What :meth:`convert` cannot convert or will leave in floating point."""
        return export_issues(self._prepared(), target, dummy_input, **options)

    def convert_to_pytorch(self, dummy_input: Any, backend: str = "fbgemm") -> nn.Module:
        """Distiller's name: see :func:`convert_distiller_ptq_model_to_pytorch`."""
        return convert_distiller_ptq_model_to_pytorch(self._prepared(), dummy_input, backend)

    def _prepared(self) -> nn.Module:
        if not self.is_prepared:
            raise LifecycleError("there is nothing to convert before prepare_model(): the model is not quantized yet")
        return self.model

    # -- what subclasses add ----------------------------------------------------------------------------------------

    def _pre_prepare_model(self, dummy_input: Any) -> None:
        """Before anything is replaced."""

    def _quantize_flows(self) -> None:
        """Let inputs and outputs of layers that stay where they are be quantized."""

    def _prepare_parameter(self, module: nn.Module, name: str, parameter: str, bits: int) -> None:
        """Give ``module`` what its ``parameter`` needs to be quantized: buffers, a learned step."""

    def _post_prepare_model(self) -> None:
        """After the model was changed, or found changed by a checkpoint's record."""
