"""Optimizers with reduced state, wrong arguments, and models whose tracing needs care."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.trace import trace
from distiller_ng.thinning.apply import apply_plan

X = torch.randn(2, 3, 6, 6)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))


def with_zero_filters(model):
    with torch.no_grad():
        model[0].weight[[1, 4]] = 0
        model[0].bias[[1, 4]] = 0
    return model


def test_adafactors_means_along_rows_and_columns_are_cut():
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    model(X).square().mean().backward()
    optimizer.step()
    distiller.remove_filters(with_zero_filters(model), optimizer=optimizer, example_inputs=X)
    assert model[0].out_channels == 6
    state = optimizer.state[model[2].weight]
    assert all(a in (1, b) for a, b in zip(state["row_var"].shape, model[2].weight.shape))
    model(X).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distiller.remove_filters("model", example_inputs=X), "torch.nn.Module"),
        (lambda: distiller.remove_filters(network(), optimizer="sgd", example_inputs=X), "optimizer"),
        (lambda: apply_plan(network(), {"a": 1}, X), "ThinningPlan"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.encoder(x, mask=mask))


def test_a_causal_transformer_loses_heads_and_hidden_units():
    model, x = Causal().eval(), torch.randn(2, 5, 16)
    report = distiller.prune_structures(model, x, sparsity=0.25, scope="layer")
    assert report.error < 1e-4
    assert model.encoder.layers[0].linear1.out_features == 24
    assert model.encoder.layers[0].self_attn.num_heads == 3


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return y * 2 if y.sum() > 0 else y


def test_a_refusal_is_an_error_and_nothing_on_the_console(capfd):
    with pytest.raises(GraphError, match=r"test_thinning_edges\.py"):
        trace(Branching(), X)
    out, err = capfd.readouterr()
    assert "arg0_1" not in out + err
