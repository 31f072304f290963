"""``--thinnify``: a smaller model from a pruned checkpoint."""

from __future__ import annotations

import argparse

import pytest
import torch

from distiller_ng.apputils.classifier_thinning import add_thinning_arguments, thinnify
from distiller_ng.checkpoint import load_model
from distiller_ng.core.masks import create_model_masks_dict
from distiller_ng.errors import ArgumentError
from distiller_ng.models import create_model


def arguments(resumed="run/best.pth.tar"):
    return argparse.Namespace(resumed_checkpoint_path=resumed, arch="digits_cnn", dataset="digits")


def pruned():
    model = create_model(False, "digits", "digits_cnn")
    masks = create_model_masks_dict(model)
    mask = torch.ones_like(model.conv2.weight)
    mask[:10] = 0
    masks["conv2.weight"].mask = mask
    return model, masks


def test_a_smaller_model_is_saved(tmp_path, caplog):
    caplog.set_level("INFO")
    model, masks = pruned()
    path = thinnify(model, masks, arguments(), tmp_path)
    assert path.name == "best_thinned_checkpoint.pth.tar"
    loaded = load_model(lambda: create_model(False, "digits", "digits_cnn"), path)
    assert (loaded.conv2.out_channels, loaded.conv3.in_channels) == (54, 54)
    assert "thinned" in caplog.text and "ms, batch 64" in caplog.text


def test_it_needs_a_checkpoint(tmp_path):
    with pytest.raises(ArgumentError, match="--resume-from"):
        thinnify(*pruned(), arguments(resumed=None), tmp_path)


def test_the_flag():
    parser = argparse.ArgumentParser()
    add_thinning_arguments(parser)
    assert parser.parse_args(["--thinnify"]).thinnify is True
