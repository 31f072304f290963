"""Trying what ``quantize`` can do, and keeping what helps on data held back (layer 4)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from distiller_ng.data_loggers.collecting import collect_quant_stats
from distiller_ng.errors import CalibrationError, ScheduleWarning
from distiller_ng.export._automatic_choices import (
    TARGETS,
    AutomaticSettings,
    depthwise_layers,
    float_operators,
    output_layers,
    recurrent_layers,
)
from distiller_ng.export._automatic_trial import (
    Outcome,
    Score,
    Trial,
    costs_of,
    example_of,
    first_count,
    input_shapes,
    quantized_or_none,
    take_back_,
)
from distiller_ng.graph._failures import MODEL_FAILURES
from distiller_ng.graph.bn_folding import fold_batch_norms
from distiller_ng.names import canonical_name
from distiller_ng.quantization.adaround import adaround_
from distiller_ng.quantization.bias_correction import correct_biases_
from distiller_ng.quantization.calibration_batches import CalibrationBatches
from distiller_ng.quantization.equalization import equalize_
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.range_linear_eltwise import RangeLinearQuantMatmulWrapper
from distiller_ng.quantization.range_linear_output import OutputGrid
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper
from distiller_ng.quantization.sensitivity import noise_contributions

__all__ = ["search"]

_FLOAT = {"bits_activations": None, "bits_weights": None, "bits_bias": None}
_WORTH_DB = 0.1  # a gain below this is chance
_EQUALIZE = 0.75
_PROBED = 16  # samples that sensitivities are estimated with
_ROUNDS = 6  # of leaving layers in floating point
_COMPARED = 16  # samples that a file is compared on: on one, a single step of a 4-bit grid is a tenth


def search(
    model: nn.Module, data: CalibrationBatches, example: Any, held_back: int, settings: AutomaticSettings
) -> Outcome:
    """Quantize ``model`` (a copy of the user's) in the best way found; see ``quantize``."""
    return _Search(model, data, example, held_back, settings).run()


class _Search:
    def __init__(
        self, model: nn.Module, data: CalibrationBatches, example: Any, held_back: int, settings: AutomaticSettings
    ) -> None:
        self.settings, self.base = settings, model
        self.calibration, self.held = data.split(held_back)
        self.example = example_of(data[0]) if example is None else example
        self.compared = example_of(self.held[0], _COMPARED) if example is None else example
        self.steps: list[str] = []
        try:
            self.expected = self.held.outputs(model)
        except MODEL_FAILURES as error:
            text = f"{type(model).__name__} does not run on the calibration data: {type(error).__name__}: {error}"
            raise CalibrationError(text) from error
        if not bool(self.expected.isfinite().all()):
            raise CalibrationError("the floating point model itself computes NaN or infinite values on the data")
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        fold_batch_norms(model, self.example)
        self.floating: dict[str, str] = {}
        self.plain_outputs: set[str] = set()
        self.more_bits: dict[str, int] = {}
        self.clip = "NONE"

    def run(self) -> Outcome:
        stats = self._observed(self.base)
        self._leave_in_floating_point(stats)
        best = self._trial(self.base, stats, "minimum and maximum")
        if self.settings.effort != "fast":
            best = self._clipped(best)
        best = self._corrected(best)
        if self.settings.effort != "fast":
            best = self._equalized(best)
        below = self.settings.bits_weights < 8
        missed = not best.score.meets(self.settings)
        if self.settings.effort == "high" or (self.settings.effort == "normal" and (below or missed)):
            best = self._rounded(best)
        noise = self._noise(best)
        if not best.score.meets(self.settings):
            best = self._mixed(best, noise)
        names = quantized_or_none(best.model)
        noise = {name: value for name, value in noise.items() if name in names}
        return Outcome(
            best.quantizer, best.reference, best.score, self.steps, self.floating, noise, best.done, self.compared
        )

    # -- what is observed and decided beforehand ---------------------------------------------------------------------

    def _observed(self, model: nn.Module) -> dict[str, Any]:
        return collect_quant_stats(model, lambda model: self.calibration.run(model), histograms=True)

    def _leave_in_floating_point(self, stats: dict[str, Any]) -> None:
        self.floating |= recurrent_layers(self.base)
        if self.settings.bits_activations is None:
            self.floating = {name: why for name, why in self.floating.items() if not self.settings.is_users(name)}
            return
        self.floating |= float_operators(self.base, stats)
        outputs = [] if self.settings.quantize_output else output_layers(self.base, self.example)
        modules = {canonical_name(name): module for name, module in self.base.named_modules()}
        self.plain_outputs = {name for name in outputs if isinstance(modules[name], nn.Linear | nn.Conv1d | nn.Conv2d)}
        for name in outputs:
            if name not in self.plain_outputs:
                self.floating.setdefault(name, "the model returns its output")
        self.floating |= depthwise_layers(self.base, input_shapes(stats, modules), self.settings)
        self.floating = {name: why for name, why in self.floating.items() if not self.settings.is_users(name)}

    # -- trials ------------------------------------------------------------------------------------------------------

    def _trial(self, reference: nn.Module, stats: dict[str, Any], what: str) -> Trial:
        settings = self.settings
        overrides: dict[str, Any] = {name: dict(value or {}) for name, value in settings.overrides.items()}
        known = {*stats, *(canonical_name(name) for name, _ in reference.named_modules())}
        for name in self.floating:
            if name in known:
                overrides[name] = dict(_FLOAT)
        for name, bits in self.more_bits.items():
            overrides[name] = {"bits_weights": bits}
        quantizer = PostTrainLinearQuantizer(
            copy.deepcopy(reference),
            settings.bits_activations,
            settings.bits_weights,
            overrides=overrides,
            mode=TARGETS[settings.target],
            clip_acts=self.clip,
            per_channel_wts=True,
            model_activation_stats=stats,
            save_fp_weights=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            warnings.simplefilter("ignore", UserWarning)
            quantizer.prepare_model(self.example)
        self._hand_on_accumulators(quantizer.model)
        trial = Trial(quantizer, reference, stats, self._score(quantizer.model))
        self.steps.append(f"{what}: {trial.score}")
        return trial

    def _hand_on_accumulators(self, model: nn.Module) -> None:
        """No grid for what linear layers and products make (its reader quantizes it), or for what the model returns."""
        if self.settings.bits_activations is None:
            return
        for full, module in model.named_modules():
            if isinstance(module, RangeLinearQuantWrapper) and not self.settings.is_users(canonical_name(full)):
                products = isinstance(module.wrapped_module, nn.Linear) or isinstance(
                    module, RangeLinearQuantMatmulWrapper
                )
                is_linear = products and not self.settings.quantize_output
                if is_linear or canonical_name(full) in self.plain_outputs:
                    module.quantizes_output = False

    def _score(self, model: nn.Module) -> Score:
        return Score.of(self.held.outputs(model), self.expected)

    def _kept(self, trial: Trial, what: str, change: Callable[[], Any]) -> Any:
        """Make a change of a trial's model in place; taken back unless it helps."""
        before = {key: value.clone() for key, value in trial.model.state_dict().items()}
        biased = {name: one.has_bias for name, one in quantized_or_none(trial.model).items()}
        result = change()
        score = self._score(trial.model)
        helps = score.sqnr_db > trial.score.sqnr_db + _WORTH_DB
        self.steps.append(f"{what}: {score}" + ("" if helps else ", not kept"))
        if helps:
            trial.score = score
            return result
        take_back_(trial.model, before, biased)
        return None

    def _clipped(self, best: Trial) -> Trial:
        """Ranges of least squared error instead of the smallest and largest values."""
        if self.settings.bits_activations is None:
            return best
        self.clip = "MSE"
        trial = self._trial(best.reference, best.stats, "ranges of least squared error")
        if trial.score.sqnr_db > best.score.sqnr_db + _WORTH_DB:
            return trial
        self.clip = "NONE"
        self.steps[-1] += ", not kept"
        return best

    def _corrected(self, trial: Trial) -> Trial:
        added = self._kept(trial, "bias correction", lambda: self._correct(trial))
        trial.note("bias corrected", added or ())
        return trial

    def _correct(self, trial: Trial) -> dict[str, Tensor]:
        if not quantized_or_none(trial.model):
            return {}
        return correct_biases_(trial.model, trial.reference, self.calibration, samples=128)

    def _equalized(self, best: Trial) -> Trial:
        reference = copy.deepcopy(self.base)
        per_tensor = self.calibration.first(64)
        report = equalize_(reference, self.example, per_tensor, strength=_EQUALIZE)
        layers = {name for group, _ in report.factors for name in (*group.producers, *(n for n, _ in group.consumers))}
        if not layers or self.settings.bits_activations is None:
            return best
        trial = self._corrected(self._trial(reference, self._observed(reference), "equalization"))
        if trial.score.sqnr_db <= best.score.sqnr_db + _WORTH_DB:
            self.steps.append("equalization not kept")
            return best
        trial.note("equalized", layers)
        return trial

    def _rounded(self, trial: Trial) -> Trial:
        if not quantized_or_none(trial.model):
            return trial

        def change() -> Any:
            report = adaround_(
                trial.model,
                self.calibration,
                samples=128,
                seed=self.settings.seed,
                time_limit_s=self.settings.time_limit_s,
            )
            self._correct(trial)
            return report

        report = self._kept(trial, "AdaRound and bias correction", change)
        if report is not None:
            trial.note("AdaRound", report.ratio)
            trial.note("bias corrected", report.ratio)
        return trial

    # -- mixed precision ---------------------------------------------------------------------------------------------

    def _noise(self, trial: Trial) -> dict[str, float]:
        if not quantized_or_none(trial.model):
            return {}
        batches = self.calibration.first(_PROBED)
        return noise_contributions(trial.model, trial.reference, batches, seed=self.settings.seed)

    def _mixed(self, trial: Trial, noise: dict[str, float]) -> Trial:
        """Raise precision, most noise for the least time first, until the targets are met."""
        costs = costs_of(trial)
        order = sorted(noise, key=lambda name: noise[name] / (costs.get(name, 0.0) + 0.02), reverse=True)
        order = [name for name in order if not self.settings.is_users(name)]
        quiet = sum(noise.values()) / (4 * max(len(order), 1))
        order.sort(key=lambda name: noise[name] < quiet)  # False comes first
        done, count, best = 0, first_count(order, noise, self.settings, trial.score), trial
        for _ in range(_ROUNDS):
            if done >= len(order):
                break
            chosen = order[done:count]
            for name in chosen:
                self._raise(name)
            done = count
            again = self._corrected(self._trial(trial.reference, trial.stats, f"{done} layers with more bits"))
            for name, what in trial.done.items():
                again.note("equalized", [name] if "equalized" in what else [])
            if self.settings.bits_weights < 8 and self.settings.effort != "fast":
                again = self._rounded(again)
            best = again
            if best.score.meets(self.settings):
                break
            count = min(len(order), max(count + 1, 2 * count))
        if not best.score.meets(self.settings):
            best = self._nothing_quantized(best)
        return best

    def _nothing_quantized(self, trial: Trial) -> Trial:
        """The last resort: activations between layers in floating point as well."""
        names = [canonical_name(name) for name, one in trial.model.named_modules() if isinstance(one, OutputGrid)]
        for name in names:
            if not self.settings.is_users(name):
                self.floating[name] = "left in floating point to meet the target"
        return self._trial(trial.reference, trial.stats, "everything in floating point")

    def _raise(self, name: str) -> None:
        if self.settings.bits_weights < 8 and name not in self.more_bits:
            self.more_bits[name] = 8
        else:
            self.floating[name] = "left in floating point to meet the target"
