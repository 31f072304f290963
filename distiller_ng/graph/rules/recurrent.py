"""LSTM, GRU and plain recurrent layers: hidden units (layer 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import LabelArray, Labels
from distiller_ng.graph.rules.layers import refuse, weight_of
from distiller_ng.graph.walker import Value, Walker, rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES)
def recurrent(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Unit i of the hidden state is row i of every gate, and column i of what reads the state.

    A module has one hidden size, so unit i goes from all its layers and directions at once.
    """
    gates = _GATES[str(node.target).split(".")[1]]
    if "input" not in args or any(weight_of(walker, p) is None for p in args["params"]):
        return refuse(walker, node, args)
    directions = 2 if args["bidirectional"] else 1
    per_layer = 4 if args["has_biases"] else 2
    first = weight_of(walker, args["params"][1])
    if first is None or len(args["params"]) != per_layer * directions * args["num_layers"]:
        return refuse(walker, node, args)  # projections
    hidden = first.shape[1]
    states = args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]
    data = walker.labels(args["input"])
    data = walker.only_along(data, [len(data.shape) - 1], node, "its input's channels are mixed with other dimensions")
    units = walker.coupling.fresh(hidden) if hidden > 1 else np.zeros(1, np.int64)
    for state in states:
        _starts_with(walker, node, state, units)
    source = data.vector(len(data.shape) - 1)
    for layer in range(args["num_layers"]):
        for direction in range(directions):
            at = (layer * directions + direction) * per_layer
            _layer(walker, args["params"][at : at + per_layer], source, units, gates)
        source = np.tile(units, directions)
    return _outputs(walker, node, units, directions)


def _starts_with(walker: Walker, node: fx.Node, state: Any, units: LabelArray) -> None:
    """A state made in forward from sizes follows, one that carries channels shares them, any other stays."""
    labels = walker.labels(state)
    if labels.made and not labels.varying:
        return
    last = len(labels.shape) - 1
    labels = walker.only_along(labels, [last], node, "the state's channels are mixed with other dimensions")
    vector = labels.vector(last)
    if vector is None or vector.size != units.size:
        walker.coupling.fix(units, walker.why(node, "its initial state is given"))
    else:
        walker.coupling.union(units, vector)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """One step of one layer."""
    gates = _GATES[str(node.target).split(".")[1].removesuffix("_cell")]
    params = [args[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if args.get(name) is not None]
    recur = weight_of(walker, args["w_hh"])
    if recur is None or any(weight_of(walker, p) is None for p in params) or recur.shape[1] < 2:
        return refuse(walker, node, args)
    units = walker.coupling.fresh(recur.shape[1])
    for state in args["hx"] if isinstance(args["hx"], list | tuple) else [args["hx"]]:
        _starts_with(walker, node, state, units)
    data = walker.labels(args["input"])
    last = len(data.shape) - 1
    data = walker.only_along(data, [last], node, "its input's channels are mixed with other dimensions")
    _layer(walker, params, data.vector(last), units, gates)
    shape = walker.shape(node)
    state = Labels(units.reshape((1,) * (len(shape) - 1) + (-1,)), shape, zero=True)
    return (state, state) if isinstance(node.meta.get("val"), tuple | list) else state


def _layer(walker: Walker, params: Any, source: LabelArray | None, units: LabelArray, gates: int) -> None:
    rows = np.tile(units, gates)
    read, recur, *biases = [weight_of(walker, p) for p in params]
    walker.axis(read, 0, rows)
    walker.axis(read, 1, source, feeds=False)
    walker.axis(recur, 0, rows)
    walker.axis(recur, 1, units)
    for bias in biases:
        walker.axis(bias, 0, rows)


def _outputs(walker: Walker, node: fx.Node, units: LabelArray, directions: int) -> Value:
    found = []
    for position, value in enumerate(node.meta["val"]):
        shape = tuple(int(s) for s in value.shape)
        vector = np.tile(units, directions) if position == 0 else units
        array = (
            vector.reshape((1,) * (len(shape) - 1) + (-1,))
            if vector.size > 1
            else np.zeros((1,) * len(shape), np.int64)
        )
        found.append(Labels(array, shape, zero=True))
    return tuple(found)
