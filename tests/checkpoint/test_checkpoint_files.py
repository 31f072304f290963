"""What a checkpoint file is: plain data only, whole or not at all, masks as bits."""

import os
import pickle
from enum import IntEnum

import numpy as np
import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import get_contents_table, read_checkpoint, save_checkpoint
from distiller_ng.checkpoint.files import plain_data
from distiller_ng.checkpoint.packing import pack_masks, unpack_masks
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, CheckpointError


def small_model():
    return nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))


def scheduler_with_mask(model):
    scheduler = CompressionScheduler(model)
    mask = torch.ones(4, 6)
    mask[0] = 0
    scheduler.masks.set("0.weight", mask, owner="p")
    return scheduler


def test_file_names_and_best_copy(tmp_path):
    model = small_model()
    assert save_checkpoint(0, "a", model, dir=tmp_path) == tmp_path / "checkpoint.pth.tar"
    save_checkpoint(0, "a", model, is_best=True, name="run", dir=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pth.tar", "run_best.pth.tar", "run_checkpoint.pth.tar"]
    assert (tmp_path / "run_best.pth.tar").read_bytes() == (tmp_path / "run_checkpoint.pth.tar").read_bytes()


def test_keys_are_distillers_and_values_plain(tmp_path):
    model = small_model()
    model.dataset = "digits"
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    path = save_checkpoint(
        7, "mynet", model, optimizer, scheduler_with_mask(model), {"top1": 91.5}, dir=tmp_path, schedule_text="a: 1\n"
    )
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 7
    assert content["arch"] == "mynet"
    assert content["dataset"] == "digits"
    assert content["is_parallel"] is False
    assert content["optimizer_type"] == "torch.optim.Adam"
    assert content["optimizer_state_dict"]["param_groups"][0]["lr"] == 0.25
    assert content["extras"] == {"top1": 91.5}
    assert content["schedule_text"] == "a: 1\n"
    assert content["structure"] == "[]"
    assert content["environment"]["torch"] == str(torch.__version__)
    assert set(content["state_dict"]) == {"0.weight", "2.weight", "2.bias"}
    # row 0 of 6 zeros, then 18 ones: 00000011 11111111 11111111
    assert content["compression_sched"]["masks_dict"]["0.weight"]["__mask_bits__"].tolist() == [3, 255, 255]


def test_a_mask_is_stored_once(tmp_path):
    def size_of(mask_count):
        model = nn.Linear(1000, 1000, bias=False)
        scheduler = CompressionScheduler(model)
        if mask_count:
            scheduler.masks.set("weight", (torch.rand(1000, 1000) > 0.5).float(), owner="p")
        return save_checkpoint(0, "a", model, scheduler=scheduler, dir=tmp_path).stat().st_size

    extra = size_of(1) - size_of(0)
    assert 125_000 <= extra < 130_000  # one million bits and a little administration


def test_extras_must_be_a_dict(tmp_path):
    with pytest.raises(TypeError, match="extras must be a dict"):
        save_checkpoint(0, "a", small_model(), extras=[1], dir=tmp_path)


def test_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        save_checkpoint(0, "a", small_model(), dir=tmp_path / "nowhere")


def test_name_may_not_leave_the_folder(tmp_path):
    with pytest.raises(ArgumentError, match="without folders"):
        save_checkpoint(0, "a", small_model(), name="../x", dir=tmp_path)


def test_code_in_extras_is_refused_by_its_place(tmp_path):
    with pytest.raises(CheckpointError, match=r"extras\['net'\]\[0\] is a Linear"):
        save_checkpoint(0, "a", small_model(), extras={"net": [nn.Linear(1, 1)]}, dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_another_models_scheduler_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="another model"):
        save_checkpoint(0, "a", small_model(), scheduler=CompressionScheduler(small_model()), dir=tmp_path)


def test_failed_write_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    model = small_model()
    path = save_checkpoint(1, "a", model, dir=tmp_path)
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(2, "a", model, dir=tmp_path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pth.tar"]


def test_file_is_as_readable_as_the_umask_says(tmp_path):
    path = save_checkpoint(0, "a", small_model(), dir=tmp_path)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


class Colour(IntEnum):
    RED = 3


def test_plain_data_converts_what_it_can():
    data = plain_data(
        {"enum": Colour.RED, "scalar": np.float64(2.5), "pair": (np.int32(1), "x"), "p": nn.Parameter(torch.ones(2))},
        where="extras",
    )
    assert data["enum"] == 3 and type(data["enum"]) is int
    assert data["scalar"] == 2.5 and type(data["scalar"]) is float
    assert data["pair"] == (1, "x")
    assert type(data["p"]) is torch.Tensor and not data["p"].requires_grad


def test_plain_data_cuts_views_loose():
    whole = torch.arange(1000.0)
    assert plain_data(whole[:3], where="x").untyped_storage().nbytes() == 12
    assert plain_data(whole, where="x").data_ptr() == whole.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_packed_masks_come_back_unchanged(dtype):
    mask = (torch.rand(3, 5, 2) > 0.5).to(dtype)
    back = unpack_masks(pack_masks([{"m": mask}]))[0]["m"]
    assert back.dtype == dtype
    assert torch.equal(back, mask)


@pytest.mark.parametrize(
    "tensor", [torch.tensor([0.0, 0.5]), torch.tensor([0.0, -0.0]), torch.tensor([1, 0]), torch.tensor(1.0)]
)
def test_only_binary_float_masks_are_packed(tensor):
    assert pack_masks(tensor) is tensor


def test_one_mask_in_two_places_stays_one():
    mask = torch.ones(8)
    packed = pack_masks({"a": mask, "b": [mask]})
    assert packed["a"] is packed["b"][0]
    unpacked = unpack_masks(packed)
    assert unpacked["a"] is unpacked["b"][0]


def test_damaged_bits_are_a_checkpoint_error():
    packed = pack_masks(torch.ones(64))
    packed["shape"] = "many"
    with pytest.raises(CheckpointError, match="packed mask is damaged"):
        unpack_masks(packed)


@pytest.mark.parametrize("keep", [0, 1, 100, -200, -1])
def test_truncated_files_are_checkpoint_errors(tmp_path, keep):
    path = save_checkpoint(0, "a", small_model(), dir=tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth\.tar: damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"not a checkpoint\n", b"\x80\x02garbage", b"PK\x03\x04" + b"\0" * 64, b"\0" * 999]
)
def test_foreign_files_are_checkpoint_errors(tmp_path, content):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth\.tar"):
        read_checkpoint(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path, new_format):
    target, path = tmp_path / "exploded", tmp_path / "bomb.pth.tar"
    torch.save({"state_dict": Bomb(str(target))}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match="refers to code.*mkdir"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_plain_pickle_is_refused(tmp_path):
    target, path = tmp_path / "exploded", tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps({"state_dict": Bomb(str(target))}))
    with pytest.raises(CheckpointError, match=r"bomb\.pkl"):
        read_checkpoint(path)
    assert not target.exists()


def test_a_pickled_model_is_refused_with_advice(tmp_path):
    torch.save(small_model(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"save model\.state_dict\(\), not the model"):
        read_checkpoint(tmp_path / "m.pth")


def test_newer_format_is_refused(tmp_path):
    torch.save({"state_dict": {}, "format_version": 99}, tmp_path / "n.pth")
    with pytest.raises(CheckpointError, match="format version 99"):
        read_checkpoint(tmp_path / "n.pth")


def test_reading_restores_names_masks_and_text(tmp_path):
    model = nn.DataParallel(small_model())
    path = save_checkpoint(
        2, "a", model, scheduler=scheduler_with_mask(model), extras={"x": 1}, dir=tmp_path, schedule_text="text"
    )
    saved = read_checkpoint(path)
    assert set(saved.state_dict) == {"0.weight", "2.weight", "2.bias"}
    assert saved.scheduler_state["masks_dict"]["0.weight"].sum() == 18
    assert (saved.epoch, saved.start_epoch, saved.schedule_text, saved.extras) == (2, 3, "text", {"x": 1})


def test_contents_table_is_sorted_and_short():
    table = get_contents_table({"epoch": 3, "arch": "x" * 200, "kind": dict, "state_dict": {}})
    lines = table.splitlines()
    assert lines[0].split() == ["Key", "Type", "Value"]
    assert [line.split()[0] for line in lines[2:]] == ["arch", "epoch", "kind", "state_dict"]
    assert lines[3].split() == ["epoch", "int", "3"]
    assert "dict" in lines[4] and max(map(len, lines)) < 90
