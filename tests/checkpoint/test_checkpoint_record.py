"""The record of structural changes: JSON only, replayed in order, refused by name."""

import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import CompressionRecord, RecordEntry, load_checkpoint, save_checkpoint
from distiller_ng.checkpoint.record import TRANSFORMS, StructuralTransform
from distiller_ng.errors import ArgumentError, CheckpointError


class Widen(StructuralTransform):
    """Replaces layer ``name`` by a linear layer of other sizes."""

    version = 2

    def apply(self, model, config, metadata):
        setattr(model, config["name"], nn.Linear(*config["sizes"]))
        return model


@pytest.fixture
def widen():
    TRANSFORMS.names()
    TRANSFORMS.register("widen")(Widen)
    yield
    del TRANSFORMS._entries["widen"]


def test_json_round_trip_keeps_order():
    record = CompressionRecord()
    record.add("b", {"x": [1, 2]}, metadata={"epoch": 3})
    record.add("a", {}, version=4)
    assert record.to_json() == (
        '[{"transform": "b", "version": 1, "config": {"x": [1, 2]}, "metadata": {"epoch": 3}}, '
        '{"transform": "a", "version": 4, "config": {}, "metadata": {}}]'
    )
    again = CompressionRecord.from_json(record.to_json())
    assert again == record
    assert [entry.transform for entry in again] == ["b", "a"]


@pytest.mark.parametrize("config", [{"t": torch.ones(1)}, {"x": (1, 2)}, {1: 2}, {"f": float("nan")}, {"o": object()}])
def test_only_json_values(config):
    with pytest.raises(ArgumentError, match="config of transform 't'"):
        RecordEntry("t", config)


@pytest.mark.parametrize("text", ["", "{}x", '[{"transform": "a"}]', "[3]", '{"a": 1}'])
def test_damaged_text(text):
    with pytest.raises(CheckpointError, match="record of structural changes is damaged"):
        CompressionRecord.from_json(text)


def test_unknown_transform_is_named_before_anything_changes(widen):
    model = nn.Sequential(nn.Linear(2, 2))
    record = CompressionRecord([RecordEntry("widen", {"name": "0", "sizes": [3, 3]}), RecordEntry("teleport")])
    with pytest.raises(CheckpointError, match=r"'teleport'.*knows: .*widen"):
        record.replay(model)
    assert model[0].in_features == 2


def test_newer_version_is_refused(widen):
    with pytest.raises(CheckpointError, match="version 3; this installation reads up to 2"):
        CompressionRecord([RecordEntry("widen", {}, version=3)]).replay(nn.Linear(1, 1))


def test_loading_replays_and_then_fits(tmp_path, widen):
    record = CompressionRecord()
    record.add("widen", {"name": "0", "sizes": [5, 7]}, version=2)
    model = record.replay(nn.Sequential(nn.Linear(2, 2)))
    path = save_checkpoint(0, "a", model, dir=tmp_path, record=record)
    loaded = load_checkpoint(nn.Sequential(nn.Linear(2, 2)), path)[0]
    assert torch.equal(loaded[0].weight, model[0].weight)
    assert loaded[0].weight.shape == (7, 5)
