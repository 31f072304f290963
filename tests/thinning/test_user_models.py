"""Models users bring: thinned exactly, or refused by name with the model untouched."""

from __future__ import annotations

import pytest
import torch
import user_cnns
import user_layers
import user_odd
import user_splits
import user_transformers
import user_vision
from thinning_checks import prune_at_random

from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph

#: Part of the message of those that have to be refused, with the reason.
REFUSED = {
    "generator": "view(-1, 12, 2, 3)",  # a number in the code cannot follow
    "literal_view": "view(-1, 8 * 48)",
    "vit": "out of the targets (blocks.0.attn.qkv.weight, blocks.0.attn.qkv.bias, blocks.0.attn.proj.weight)",  # c // num_heads: the code takes a head's size from the model's width
    "vit_fused": "in module 'blocks.0.attn'",
    "swin": "in module",
    "data_dependent": "x.relu() if x.sum() > 0 else x",
    "multihead_bias_kv": "module 'attn'",
}
#: Every channel of these is held by an operator, which the reason names.
FROZEN = {
    "spectral_norm": ("0", "operator 'mv' in module '2.parametrizations.weight.0'"),
    "lstm_projected": ("emb", "operator 'lstm' in module 'rnn'"),
    "softmax_over_channels": ("conv", "softmax runs across these channels"),
    "cumsum_over_channels": ("conv", "cumsum runs across these channels"),
    "mean_over_channels": ("conv", "mean runs across these channels"),
    "max_over_channels": ("conv", "amax runs across these channels"),
}


def _models(module):
    return [
        pytest.param(function, id=name)
        for name, function in vars(module).items()
        if getattr(function, "__module__", "") == module.__name__
        and not isinstance(function, type)
        and not name.startswith("_")
        and not function.__code__.co_varnames[: function.__code__.co_argcount]
        and not function.__code__.co_flags & 0x04
    ]


MODULES = (user_cnns, user_splits, user_transformers, user_vision, user_odd, user_layers)


@pytest.mark.parametrize("build", [model for module in MODULES for model in _models(module)])
def test_thinned_exactly_or_refused_untouched(build):
    torch.manual_seed(1)
    model, inputs = build()
    name = build.__name__
    outcome, channels, message = prune_at_random(model, inputs, seed=1, with_state=name != "fasternet_slicing")
    if name in REFUSED:
        assert outcome == "refused"
        assert REFUSED[name] in message
    elif name in FROZEN:
        assert outcome == "nothing"
        layer, reason = FROZEN[name]
        with pytest.raises(GraphError) as caught:
            DependencyGraph.trace(model, inputs).group(layer, 0, [0])
        assert reason in str(caught.value)
    else:
        assert outcome == "equal", message
        assert channels > 0
