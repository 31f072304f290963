"""Every technique with every way of running a loop, on a tiny model (the lifecycle contract, pairwise).

A new technique is one entry of TECHNIQUES: a schedule as a dictionary. Each column is one test.
"""

from __future__ import annotations

import io

import pytest
import torch
from replicas import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller

EPOCHS, WEIGHTS = 4, ["conv.weight", "fc.weight"]


def pruner(cls, *, args=None, window=(0, EPOCHS), **settings):
    policy = {"instance_name": "p", **({"args": args} if args else {})}
    start, end, *by_step = window
    when = {"starting_epoch": start, "ending_epoch": end, "frequency": 1}
    if by_step:
        when |= {"frequency": by_step[0], "trigger": "step"}
    return {
        "version": 1,
        "pruners": {"p": {"class": cls, **settings}},
        "policies": [{"pruner": policy, **when}],
    }


def regularizer(cls, *, args=None, **settings):
    policy = {"instance_name": "r", **({"args": args} if args else {})}
    return {
        "regularizers": {"r": {"class": cls, **settings}},
        "policies": [{"regularizer": policy, "starting_epoch": 0, "ending_epoch": EPOCHS, "frequency": 1}],
    }


def learning_rate(cls, **settings):
    return {
        "lr_schedulers": {"lr": {"class": cls, **settings}},
        "policies": [{"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": EPOCHS}],
    }


def distill(**settings):
    return {
        "distillers": {"kd": {"class": "KnowledgeDistiller", "temperature": 2.0, **settings}},
        "policies": [{"distiller": {"instance_name": "kd"}, "starting_epoch": 1, "ending_epoch": EPOCHS}],
    }


def extension(cls, *, window=(0, 3), **settings):
    start, end, *by_step = window
    when = {"starting_epoch": start, "ending_epoch": end, "frequency": 1}
    if by_step:
        when |= {"frequency": by_step[0], "trigger": "step"}
    return {
        "version": 1,
        "extensions": {"x": {"class": cls, **settings}},
        "policies": [{"extension": {"instance_name": "x"}, **when}],
    }


FILTERS = {"group_type": "Filters", "weights": ["conv.weight"]}
RAMP = {"initial_sparsity": 0.1, "final_sparsity": 0.5}
DROP = {
    "mini_batch_pruning_frequency": 1,
    "mask_on_forward_only": True,
    "use_double_copies": True,
    "mask_gradients": True,
}


def quantized(technique, cls, *, start=0, **settings):
    """The same schedule, and a quantizer beside it."""
    policy = {"quantizer": {"instance_name": "q"}, "starting_epoch": start, "ending_epoch": EPOCHS}
    return {
        **technique,
        "quantizers": {"q": {"class": cls, **settings}},
        "policies": [*technique["policies"], policy],
    }


LEVEL = pruner("SparsityLevelParameterPruner", levels=dict.fromkeys(WEIGHTS, 0.5))
AGP = pruner("AutomatedGradualPruner", initial_sparsity=0.05, final_sparsity=0.8, weights=WEIGHTS)

TECHNIQUES = {
    "level": pruner("SparsityLevelParameterPruner", levels=dict.fromkeys(WEIGHTS, 0.5)),
    "threshold": pruner("MagnitudeParameterPruner", thresholds={"*": 0.02}),
    "sensitivity": pruner("SensitivityPruner", sensitivities=dict.fromkeys(WEIGHTS, 0.5)),
    "agp": pruner("AutomatedGradualPruner", initial_sparsity=0.05, final_sparsity=0.8, weights=WEIGHTS),
    "agp_global_by_step": pruner(
        "MagnitudePruner",
        window=(0.5, 2.5),
        weights=["__ALL_PRUNABLE__"],
        scope="global",
        schedule={"class": "AGP", "initial_sparsity": 0.05, "final_sparsity": 0.8},
    ),
    "n_of_m": pruner("MagnitudePruner", weights=["fc.weight"], pattern="2:4"),
    "splicing": pruner(
        "SplicingPruner",
        sensitivities=dict.fromkeys(WEIGHTS, 0.3),
        low_thresh_mult=0.9,
        hi_thresh_mult=1.1,
        args={"mini_batch_pruning_frequency": 1, "mask_on_forward_only": True, "keep_mask": True},
    ),
    "baidu": pruner("BaiduRNNPruner", q=0.05, ramp_epoch_offset=2, ramp_slope_mult=2, weights=WEIGHTS),
    "filters": pruner("L1RankedStructureParameterPruner", desired_sparsity=0.5, **FILTERS),
    "filters_agp": pruner("L2RankedStructureParameterPruner_AGP", **RAMP, **FILTERS),
    "filters_gradient": pruner("GradientRankedFilterPruner", window=(1, EPOCHS), desired_sparsity=0.5, **FILTERS),
    "filters_activation": pruner("ActivationAPoZRankedFilterPruner_AGP", window=(1, EPOCHS), **RAMP, **FILTERS),
    "filters_random": pruner("RandomRankedFilterPruner", desired_sparsity=0.5, **FILTERS),
    "filters_bernoulli": pruner("BernoulliFilterPruner", desired_sparsity=0.4, args=DROP, **FILTERS),
    "dense_sparse_dense": pruner("DenseSparseDense", window=(1, 3), weights=WEIGHTS, sparsity=0.5),
    "acdc": pruner("ACDCPruner", weights=WEIGHTS, compression_sparsity=0.5),
    "acdc_by_step": pruner("ACDCPruner", window=(0, 3, 1), weights=WEIGHTS, compression_sparsity=0.5),
    "constant": pruner("ConstantPruner", weights=WEIGHTS, pattern="2:4"),
    "gradual_blocks": pruner(
        "MagnitudePruner", window=(0.5, 2.5, 0.25), init_sparsity=0.1, final_sparsity={0.5: WEIGHTS}, mask_type=[2, 1]
    ),
    "movement": pruner("MovementPruner", weights=WEIGHTS, init_sparsity=0.1, final_sparsity=0.6),
    "movement_by_step": pruner("MovementPruner", window=(0.5, 3, 0.5), weights=WEIGHTS, final_sparsity=0.6),
    "rigl": pruner("RigLPruner", window=(0, 3, 0.5), weights=WEIGHTS, final_sparsity=0.6),
    "structured": pruner("StructuredPruner", window=(0.5, 3, 0.5), weights=["conv.weight"], final_sparsity=0.5),
    "powerpropagation": extension("Powerpropagation", window=(0.5, 2.5, 0), weights=WEIGHTS, alpha=1.5),
    "soft_threshold": extension("SoftThreshold", weights=WEIGHTS, init_threshold=-3.0),
    "soft_movement": extension("SoftMovement", window=(0, 3, 0), weights=WEIGHTS, regularization=3.0, score_lr=0.5),
    "top_kast": extension("TopKAST", window=(0, 3, 0.5), weights=WEIGHTS, forward_sparsity=0.7, backward_sparsity=0.4),
    "activation_regularizer": extension("ActivationRegularizer", layers=["relu"], alpha=0.01, reg_tens="out"),
    "trainable_params": extension("TrainableParams", window=(1, 2, 0), weights=["conv.weight"], trainable=False),
    "layer_pruning": extension("LayerPruning", window=(1, 3), layers=["relu2"]),
    "l1": regularizer("L1Regularizer", reg_regims={"conv.weight": 0.01}, threshold_criteria="Mean_Abs"),
    "group_lasso": regularizer(
        "GroupLassoRegularizer",
        reg_regims={"conv.weight": [0.05, "Filters"]},
        threshold_criteria="Mean_Abs",
        args={"keep_mask": True},
    ),
    "group_variance": regularizer("GroupVarianceRegularizer", reg_regims={"conv2.weight": [1e-6, "Channels"]}),
    "level_dorefa": quantized(LEVEL, "DorefaQuantizer", bits_activations=8, bits_weights=4),
    "level_wrpn_late": quantized(LEVEL, "WRPNQuantizer", start=2, bits_activations=8, bits_weights=4),
    "agp_pact": quantized(AGP, "PACTQuantizer", start=1, bits_activations=8, bits_weights=8, act_clip_init_val=0.5),
    "agp_lsq_weights": quantized(AGP, "LSQQuantizer", bits_activations=None, bits_weights=8),
    "level_linear_weights": quantized(
        LEVEL,
        "QuantAwareTrainRangeLinearQuantizer",
        bits_activations=None,
        bits_weights=8,
        bits_bias=None,
        per_channel_wts=True,
    ),
    "level_schemes": quantized(LEVEL, "SchemeQuantizer", scheme={"input_activations": None}),
    "distill_self": distill(teacher="self"),
    "distill_average_layers": distill(
        teacher={"ema": 0.9}, layers={"conv": "conv", "relu2": {"teacher": "relu2", "loss": "AT"}}
    ),
    "step_lr": learning_rate("StepLR", step_size=1, gamma=0.5),
    "one_cycle": learning_rate("OneCycleLR", max_lr=0.2, total_steps=EPOCHS),
    "plateau": learning_rate("ReduceLROnPlateau", patience=0, factor=0.5),
}
HOLDS_ZEROS = [name for name in TECHNIQUES if name not in ("filters_bernoulli", "splicing", "dense_sparse_dense")]
every_technique = pytest.mark.parametrize("technique", list(TECHNIQUES))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3), nn.ReLU()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu(self.conv(x)))).flatten(1))


class Run:
    """A model, an optimizer, a schedule and a loader; the same for every variant of a technique."""

    def __init__(self, technique, *, double=False, wrap=lambda model: model, batch=8, optimizer=torch.optim.SGD):
        torch.manual_seed(0)
        self.model = Tiny().double() if double else Tiny()
        x, y = torch.randn(32, 1, 6, 6), torch.randint(0, 4, (32,))
        self.loader = DataLoader(TensorDataset(x.double() if double else x, y), batch_size=batch)
        settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        self.optimizer = optimizer(self.model.parameters(), lr=0.05, **settings)
        self.net = wrap(self.model)
        self.scheduler = distiller.dict_config(self.net, self.optimizer, TECHNIQUES[technique])
        torch.manual_seed(1)

    def dead(self):
        """(weight, where a projecting mask is zero) for every masked parameter."""
        for name, masker in self.scheduler.zeros_mask_dict.items():
            if masker.mask is not None and not masker.is_forward_only:
                yield self.scheduler.parameters[name].detach(), masker.mask == 0

    def check_zeros(self):
        for weight, dead in self.dead():
            assert bool((weight[dead] == 0).all())

    def loss(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)

    def train(self, step=None, accumulate=1, stop_after=None):
        done = 0
        for _ in self.scheduler.epochs(EPOCHS):
            self.optimizer.zero_grad()
            for x, y in self.scheduler.minibatches(self.loader, accumulate=accumulate):
                (step or self.step)(x, y)
                self.check_zeros()
                done += 1
                if done == stop_after:
                    return self
            self.scheduler.report(min=1.0, max=50.0)
        return self

    def step(self, x, y):
        self.scheduler.backward(self.loss(x, y))
        if self.scheduler.should_step:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def weights(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def state(self):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


def assert_zeros_were_held(run, technique):
    """The technique did something that can be seen at the end."""
    if "pruners" in TECHNIQUES[technique] and technique in HOLDS_ZEROS:
        dead = [int(where.sum()) for _, where in run.dead()]
        assert dead and max(dead) > 0
        run.check_zeros()


@every_technique
def test_accumulation_equals_a_large_batch(technique):
    large, small = Run(technique, double=True, batch=16).train(), Run(technique, double=True, batch=4)
    small.train(accumulate=4)
    for a, b in zip(large.weights(), small.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert [g["lr"] for g in large.optimizer.param_groups] == [g["lr"] for g in small.optimizer.param_groups]


@every_technique
def test_bf16_autocast(technique):
    run = Run(technique)

    def step(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = run.loss(x, y)
        total = run.scheduler.backward(loss)
        assert torch.isfinite(total)
        run.optimizer.step()
        run.optimizer.zero_grad()

    assert_zeros_were_held(run.train(step), technique)


@every_technique
def test_grad_scaler_with_skipped_steps(technique):
    run, scaler, seen = Run(technique), torch.amp.GradScaler("cpu", init_scale=4.0), {"steps": 0, "skipped": 0}

    def step(x, y):
        run.scheduler.backward(run.loss(x, y), scaler=scaler)
        seen["steps"] += 1
        if seen["steps"] % 5 == 2:
            run.model.fc.bias.grad.fill_(float("inf"))
            before, counted = run.weights(), run.scheduler.masks.steps
        scaler.step(run.optimizer)
        if seen["steps"] % 5 == 2:
            seen["skipped"] += 1
            assert run.scheduler.masks.steps == counted
            assert all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
        scaler.update()
        run.optimizer.zero_grad()

    assert_zeros_were_held(run.train(step), technique)
    assert seen["skipped"] >= 3 and run.scheduler.masks.steps == seen["steps"] - seen["skipped"]


@every_technique
def test_torch_compile(technique):
    torch._dynamo.reset()  # compiled code is shared among all models of a class, hooks or not
    eager = Run(technique).train()
    compiled = Run(technique, wrap=lambda model: torch.compile(model, backend="aot_eager")).train()
    for a, b in zip(eager.weights(), compiled.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert_zeros_were_held(compiled, technique)


@every_technique
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("killed_after", [1, 6, 8, 13])
def test_resume_is_bit_identical(technique, optimizer, killed_after):
    whole = Run(technique, optimizer=optimizer).train()
    first, buffer = Run(technique, optimizer=optimizer).train(stop_after=killed_after), io.BytesIO()
    torch.save({key: part.state_dict() for key, part in first.state().items()}, buffer)
    buffer.seek(0)
    resumed = Run(technique, optimizer=optimizer)
    torch.manual_seed(99)
    saved = torch.load(buffer, weights_only=True)
    for key, part in resumed.state().items():
        part.load_state_dict(saved[key])
    resumed.train()
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)
    assert [g["lr"] for g in whole.optimizer.param_groups] == [g["lr"] for g in resumed.optimizer.param_groups]


def _replica(rank, folder):
    results = {}
    for technique in TECHNIQUES:
        run = Run(technique, wrap=DistributedDataParallel)
        data = run.loader.dataset.tensors
        half = slice(rank * 16, rank * 16 + 16)
        run.loader = DataLoader(TensorDataset(data[0][half], data[1][half]), batch_size=4)
        torch.manual_seed(100 + rank)  # replicas disagree about random numbers; masks must not
        run.train()
        masks = {n: m.mask.clone() for n, m in run.scheduler.zeros_mask_dict.items() if m.mask is not None}
        results[technique] = {"weights": run.weights(), "masks": masks}
    torch.save(results, folder / f"{rank}.pt")


def test_two_replicas_keep_the_same_masks_and_weights(tmp_path):
    in_two_processes(_replica, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert set(first) == set(TECHNIQUES)
    for technique in TECHNIQUES:
        ours, theirs = first[technique], second[technique]
        assert all(torch.equal(a, b) for a, b in zip(ours["weights"], theirs["weights"], strict=True)), technique
        assert ours["masks"].keys() == theirs["masks"].keys(), technique
        assert all(torch.equal(ours["masks"][n], theirs["masks"][n]) for n in ours["masks"]), technique


def test_tied_weights_and_attention_projections_stay_pruned():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Embedding(7, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.decoder = nn.Linear(8, 7, bias=False)
            self.decoder.weight = self.encoder.weight

        def forward(self, x):
            x = self.encoder(x)
            return self.decoder(self.attention(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    names = ["decoder.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    schedule = pruner("SparsityLevelParameterPruner", levels=dict.fromkeys(names, 0.5))
    scheduler = distiller.dict_config(model, optimizer, schedule)
    x = torch.randint(0, 7, (4, 5))
    for _ in scheduler.epochs(2):
        for batch in scheduler.minibatches([x, x]):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten()))
            optimizer.step()
            for weight in (model.decoder.weight, model.attention.in_proj_weight, model.attention.out_proj.weight):
                assert (weight == 0).double().mean() == 0.5
    assert model.decoder.weight is model.encoder.weight
