"""Teacher logits in a file: what is written, how it is read back, and what is refused."""

import copy
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError
from distiller_ng.knowledge_distillation.cache import CachedTeacher, WithSampleIds, cache_teacher, teacher_fingerprint
from distiller_ng.knowledge_distillation.sample_ids import split_sample_ids


def net(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes))


def data(count=11, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.arange(count) % 3)


@pytest.fixture
def made(tmp_path):
    teacher, wrapped = net(), WithSampleIds(data())
    cached = cache_teacher(teacher, DataLoader(wrapped, batch_size=4, shuffle=True), tmp_path / "logits.bin")
    return teacher, wrapped, cached


def expected(teacher, dataset):
    teacher.eval()
    with torch.no_grad():
        return teacher(dataset.tensors[0])


# -- writing and reading -------------------------------------------------------------------------------------------------


def test_logits_come_back_by_id_in_any_order(made):
    teacher, wrapped, cached = made
    wanted = expected(teacher, wrapped.dataset)
    assert cached.shape == (11, 3)
    assert len(cached) == 11
    torch.testing.assert_close(cached.logits([7, 0, 10]), wanted[[7, 0, 10]], rtol=1e-3, atol=1e-3)
    assert cached.logits([7, 0, 10]).dtype == torch.float32
    assert torch.equal(cached.logits([2]), wanted[[2]].half().float())


def test_file_holds_float16_and_is_read_through_a_memory_map(made):
    *_, cached = made
    raw = cached.path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert header["logits"] == {"dtype": "F16", "shape": [11, 3], "data_offsets": [0, 66]}
    assert header["ids"]["dtype"] == "I64"
    assert header["ids"]["data_offsets"] == [72, 160]  # after six filling bytes
    assert len(raw) == 8 + length + 160
    assert isinstance(cached._cache.logits, np.memmap)
    assert [path.name for path in cached.path.parent.iterdir()] == ["logits.bin"]


def test_a_plain_loader_in_order_uses_positions(tmp_path):
    teacher, plain = net(), data()
    cached = cache_teacher(teacher, DataLoader(plain, batch_size=4), tmp_path / "c")
    torch.testing.assert_close(cached.logits([9]), expected(teacher, plain)[[9]], rtol=1e-3, atol=1e-3)
    cached = cache_teacher(teacher, [(plain.tensors[0][:5],), (plain.tensors[0][5:],)], tmp_path / "c")
    assert len(cached) == 11


def test_teacher_runs_in_eval_mode_and_gets_its_modes_and_buffers_back(tmp_path):
    teacher = net().train()
    teacher[1].eval()
    before = copy.deepcopy(teacher.state_dict())
    cache_teacher(teacher, DataLoader(data(), batch_size=4), tmp_path / "c")
    assert [module.training for module in teacher] == [True, False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


class Named(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x=None, extra=None):
        assert extra is None or extra.shape == x.shape[:1]
        return self.wrap(self.net(x))


class Output:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda z: {"logits": z, "loss": z.sum()}, None),
        (lambda z: (z, z + 1), None),
        (Output, None),
        (lambda z: {"a": z + 1, "b": z}, "b"),
        (lambda z: [z + 1, z], 1),
        (Output, "logits"),
    ],
)
def test_outputs_of_every_kind(wrap, output, tmp_path):
    teacher, plain = Named(wrap), data()
    cached = cache_teacher(teacher, DataLoader(plain, batch_size=4), tmp_path / "c", output=output)
    torch.testing.assert_close(cached.logits([3]), expected(teacher.net, plain)[[3]], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wrap", "output"), [(lambda z: {"a": z}, None), (lambda z: (z,), 3), (lambda z: z.argmax(1), None)]
)
def test_outputs_without_logits_are_refused(wrap, output, tmp_path):
    with pytest.raises(ArgumentError, match="say where they are"):
        cache_teacher(Named(wrap), DataLoader(data(), batch_size=4), tmp_path / "c", output=output)


class Dicts(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"x": torch.full((4,), float(index)), "labels": index % 3}


def test_mappings_reach_the_teacher_by_name_without_labels(tmp_path):
    teacher = Named(lambda z: z)
    loader = DataLoader(WithSampleIds(Dicts()), batch_size=4, shuffle=True)
    cached = cache_teacher(teacher, loader, tmp_path / "c")
    teacher.eval()
    torch.testing.assert_close(cached.logits([5]), teacher(torch.full((1, 4), 5.0)).detach(), rtol=1e-3, atol=1e-3)
    for batch in cached.batches(loader):
        assert set(batch) == {"x", "labels"}


def test_inputs_of_your_own(tmp_path):
    teacher = Named(lambda z: z)
    pairs = TensorDataset(*data().tensors, torch.zeros(11))
    cached = cache_teacher(
        teacher, DataLoader(pairs, batch_size=4), tmp_path / "c", inputs=lambda b: {"x": b[0], "extra": b[2]}
    )
    assert cached.shape == (11, 3)
    cached = cache_teacher(teacher, DataLoader(pairs, batch_size=4), tmp_path / "c", inputs=lambda b: (b[0], b[2]))
    assert cached.shape == (11, 3)


@pytest.mark.parametrize("shape", [(), (2, 5)])
def test_logits_of_any_shape(shape, tmp_path):
    class Shaped(nn.Module):
        def forward(self, x):
            return x[:, :1].reshape(-1, *[1] * len(shape)).expand(-1, *shape) if shape else x[:, 0]

    cached = cache_teacher(Shaped(), DataLoader(data(), batch_size=4), tmp_path / "c")
    assert cached.shape == (11, *shape)
    assert cached.logits([1, 2]).shape == (2, *shape)


def test_bfloat16_and_channels_last_teachers(tmp_path):
    conv = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten()).to(torch.bfloat16, memory_format=torch.channels_last)
    images = TensorDataset(torch.randn(5, 1, 3, 3).bfloat16())
    cached = cache_teacher(conv, DataLoader(images, batch_size=2), tmp_path / "c")
    assert torch.equal(cached.logits(range(5)), conv(images.tensors[0]).detach().half().float())


def test_a_subset_keeps_the_numbers_of_the_whole(tmp_path):
    teacher, wrapped = net(), WithSampleIds(data())
    cached = cache_teacher(teacher, DataLoader(Subset(wrapped, [8, 3]), batch_size=4), tmp_path / "c")
    torch.testing.assert_close(cached.logits([8]), expected(teacher, wrapped.dataset)[[8]], rtol=1e-3, atol=1e-3)
    with pytest.raises(CalibrationError, match="no logits of sample 5"):
        cached.logits([5])


def test_an_older_file_stays_whole_when_a_pass_fails(made):
    teacher, wrapped, cached = made
    before = cached.path.read_bytes()
    wrapped.dataset.tensors[0][6] = float("nan")
    with pytest.raises(CalibrationError, match="sample 6 hold nan"):
        cache_teacher(teacher, DataLoader(wrapped, batch_size=4), cached.path)
    assert cached.path.read_bytes() == before
    assert len(list(cached.path.parent.iterdir())) == 1


# -- what is refused when writing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda: DataLoader(data(), batch_size=4, shuffle=True), "RandomSampler"),
        (lambda: DataLoader(data(), batch_sampler=Backwards(SequentialSampler(data()), 4, False)), "Backwards"),
        (lambda: DataLoader(ConcatDataset([data(), data()]), sampler=RandomSampler(range(22))), "WithSampleIds"),
        (lambda: DataLoader(WithSampleIds(data()), sampler=[1, 2, 1]), "sample 1 comes 2 times"),
        (lambda: [], "no batch"),
        (lambda: DataLoader(Subset(WithSampleIds(data()), []), batch_size=4), "no batch"),
    ],
)
def test_loaders_that_do_not_say_which_sample_is_which(loader, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        cache_teacher(net(), loader(), tmp_path / "c")
    assert not list(tmp_path.iterdir())


class Backwards(BatchSampler):
    def __iter__(self):
        return reversed(list(super().__iter__()))


@pytest.mark.parametrize(("value", "shown"), [(float("inf"), "inf"), (70000.0, "70000")])
def test_numbers_float16_cannot_hold(value, shown, tmp_path):
    inputs = torch.zeros(5, 2)
    inputs[3, 1] = value
    with pytest.raises(CalibrationError, match=f"sample 3 hold {shown}"):
        cache_teacher(nn.Identity(), DataLoader(TensorDataset(inputs), batch_size=2), tmp_path / "c")


def test_samples_of_different_shapes_and_outputs_without_a_batch(tmp_path):
    with pytest.raises(ArgumentError, match=r"shape \[3\] a sample after \[2\]"):
        cache_teacher(nn.Identity(), [torch.ones(1, 2), torch.ones(1, 3)], tmp_path / "c")
    with pytest.raises(ArgumentError, match="first dimension"):
        cache_teacher(nn.Flatten(0), DataLoader(WithSampleIds(data()), batch_size=4), tmp_path / "c")
    with pytest.raises(ArgumentError, match="is a folder"):
        cache_teacher(nn.Identity(), [torch.ones(1, 2)], tmp_path)


# -- fingerprints --------------------------------------------------------------------------------------------------------


def test_fingerprint_ignores_wrappers_and_modes_but_sees_every_weight():
    teacher = net()
    first = teacher_fingerprint(teacher)
    assert first == teacher_fingerprint(copy.deepcopy(teacher).eval())
    assert first == teacher_fingerprint(nn.DataParallel(teacher))
    other = copy.deepcopy(teacher)
    other[1].running_mean[0] += 1e-3
    assert first != teacher_fingerprint(other)
    assert first != teacher_fingerprint(nn.Sequential(*[nn.GELU() if i == 2 else m for i, m in enumerate(teacher)]))
    assert teacher_fingerprint(nn.Linear(2, 2).bfloat16())


def test_another_teacher_is_refused(made):
    teacher, _, cached = made
    assert CachedTeacher(cached.path, teacher=teacher).fingerprint == teacher_fingerprint(teacher)
    with pytest.raises(CalibrationError, match="another teacher: of a Sequential"):
        CachedTeacher(cached.path, teacher=net(seed=5))


# -- data that do not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [(lambda: data(12), "of 11 samples, this one has 12"), (lambda: data(11, seed=2), "other data.*sample 0 differs")],
)
def test_other_data_are_refused(made, other, message):
    *_, cached = made
    for given in (other(), DataLoader(other()), WithSampleIds(other())):
        with pytest.raises(CalibrationError, match=message):
            CachedTeacher(cached.path, dataset=given)
    with pytest.raises(CalibrationError, match=message):
        cached.batches(DataLoader(WithSampleIds(other()), batch_size=4))


def test_the_same_data_pass_whatever_their_labels_and_wrappers(made):
    _, wrapped, cached = made
    relabelled = TensorDataset(wrapped.dataset.tensors[0], torch.zeros(11))
    for same in (wrapped, wrapped.dataset, relabelled, Subset(wrapped, [3])):
        cached.check(dataset=same)


class Noisy(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.rand(4), 0


def test_random_data_are_warned_about_when_cached_and_refused_later(made, tmp_path, caplog):
    *_, cached = made
    with pytest.raises(CalibrationError, match="at random"):
        cached.batches(DataLoader(WithSampleIds(Noisy())))
    assert len(cached.batches(DataLoader(WithSampleIds(Noisy())), check=False)) == 11
    before = torch.get_rng_state()
    cached.check(dataset=data())
    assert torch.equal(before, torch.get_rng_state())
    own = cache_teacher(net(), DataLoader(WithSampleIds(Noisy())), tmp_path / "noisy")
    assert "random augmentation" in caplog.text
    own.check(dataset=Noisy())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "no whole file"),
        (lambda raw: raw + b"x", "no whole file"),
        (lambda raw: raw[:4], "does not begin as one"),
        (lambda raw: b"", "does not begin as one"),
        (lambda raw: b"PK\x03\x04" + raw, "does not begin as one"),
        (lambda raw: raw[:8] + b"[1]".ljust(8184) + raw[8192:], "does not begin as one"),
        (lambda raw: raw.replace(b"distiller_ng", b"something_xx"), "does not say which teacher"),
        (lambda raw: raw.replace(b'"version\\": 1', b'"version\\": 9'), "has version 9"),
        (lambda raw: raw.replace(b'"shape": [11, 3]', b'"shape": [11,-3]'), "no whole file"),
        (lambda raw: raw.replace(b'"shape": [11, 3]', b'"shape": [12, 3]'), "no whole file"),
        (lambda raw: raw[:-8] + raw[-16:-8], "stands in it twice"),
    ],
)
def test_damaged_files(made, damage, message):
    *_, cached = made
    path = cached.path.with_name("damaged")
    path.write_bytes(damage(cached.path.read_bytes()))
    with pytest.raises(CalibrationError, match=message):
        CachedTeacher(path)


def test_things_that_are_no_teacher_no_loader_and_no_file(made, tmp_path):
    *_, cached = made
    for call in (lambda: cache_teacher("resnet", [], tmp_path / "c"), lambda: cached.check(teacher="resnet")):
        with pytest.raises(ArgumentError, match=r"teacher is a torch\.nn\.Module"):
            call()
    for call in (lambda: cache_teacher(net(), None, tmp_path / "c"), lambda: cached.batches(None)):
        with pytest.raises(ArgumentError, match="loader yields batches"):
            call()
    with pytest.raises(CalibrationError, match="is a folder"):
        CachedTeacher(tmp_path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        CachedTeacher(tmp_path / "nothing")


# -- as a teacher --------------------------------------------------------------------------------------------------------


def test_batches_select_and_called_like_a_module_it_reads(made):
    teacher, wrapped, cached = made
    wanted = expected(teacher, wrapped.dataset)
    loader = DataLoader(wrapped, batch_size=4, shuffle=True)
    batches = cached.batches(loader)
    assert (len(batches), batches.batch_size, batches.dataset) == (3, 4, wrapped)
    for _ in range(2):
        seen = 0
        for inputs, labels in batches:
            logits = cached(inputs)
            torch.testing.assert_close(logits, teacher(inputs), rtol=1e-3, atol=1e-3)
            assert not logits.requires_grad
            assert len(labels) == len(inputs)
            seen += len(inputs)
        assert seen == len(wanted)
    with pytest.raises(LifecycleError, match="which samples"):
        cached(inputs)


def test_any_iterable_of_batches_may_be_between(made):
    _, wrapped, cached = made
    loader = DataLoader(wrapped, batch_size=4, shuffle=True)
    assert sum(len(cached(x)) for x, _ in cached.batches(batch for batch in loader)) == 11
    with pytest.raises(ArgumentError, match="may be labels"):
        list(cached.batches(iter([[torch.ones(3, 4), torch.tensor([0, 1, 0])]])))
    with pytest.raises(ArgumentError, match="yields no sample ids"):
        cached.batches(DataLoader(data()))


def test_a_loop_left_early_leaves_nothing_selected(made):
    _, wrapped, cached = made
    running = iter(cached.batches(DataLoader(wrapped, batch_size=4)))
    inputs, _ = next(running)
    assert cached(inputs).shape == (4, 3)
    del running
    with pytest.raises(LifecycleError):
        cached(inputs)


@pytest.mark.parametrize("ids", [[1.0], "ab", [[1]], None, torch.tensor([True]), 3, [1, 1]])
def test_ids_that_are_none(made, ids):
    *_, cached = made
    with pytest.raises(ArgumentError, match="sample id"):
        cached.select(ids)


def test_selection_and_batch_must_agree(made):
    *_, cached = made
    cached.select([1, 2])
    with pytest.raises(LifecycleError, match="2 samples are selected, but the batch holds 3"):
        cached(torch.ones(3, 4))
    assert cached(x=torch.ones(2, 4)).shape == (2, 3)
    assert cached().shape == (2, 3)
    with pytest.raises(CalibrationError, match="no logits of sample 11"):
        cached.select([1, 11])


def test_it_is_a_small_module_that_can_be_copied_and_pickled(made):
    *_, cached = made
    assert not list(cached.parameters())
    assert not cached.state_dict()
    for twin in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
        assert torch.equal(twin.logits([4]), cached.logits([4]))
    assert len(pickle.dumps(cached)) < 5000
    assert "[11, 3] logits of Sequential" in repr(cached)


# -- the wrapper ---------------------------------------------------------------------------------------------------------


def test_samples_of_every_kind_carry_their_number():
    assert WithSampleIds([("a", 1)])[0] == ("a", 1, 0)
    assert WithSampleIds([["a", 1]])[0] == ["a", 1, 0]
    assert WithSampleIds(["a", "b"])[-1] == ("b", 1)
    assert WithSampleIds([{"a": 1}])[0] == {"a": 1, "sample_id": 0}
    with pytest.raises(ArgumentError, match="already"):
        WithSampleIds([{"sample_id": 1}])[0]
    with pytest.raises(IndexError):
        WithSampleIds(["a"])[1]
    assert list(WithSampleIds(["a", "b"])) == [("a", 0), ("b", 1)]


def test_wrapper_keeps_batched_reading_and_attributes():
    class Fast(Dataset):
        labels = torch.tensor([5, 6, 7])

        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("read one by one")

        def __getitems__(self, indices):
            return [(float(i), 0) for i in indices]

    wrapped = WithSampleIds(Fast())
    assert next(iter(DataLoader(wrapped, batch_size=3)))[-1].tolist() == [0, 1, 2]
    assert wrapped.labels.tolist() == [5, 6, 7]
    assert pickle.loads(pickle.dumps(WithSampleIds([1]))).dataset == [1]
    with pytest.raises(AttributeError):
        _ = wrapped.nothing


def test_tensors_are_read_together_with_the_same_result():
    wrapped = WithSampleIds(data())
    for (x, y, number), (x2, y2, number2) in zip(wrapped.__getitems__([3, -1]), (wrapped[3], wrapped[-1]), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2) and number == number2
    x, y, ids = next(iter(DataLoader(wrapped, batch_size=4)))
    assert torch.equal(x, wrapped.dataset.tensors[0][:4])
    assert (y.tolist(), ids.tolist()) == ([0, 1, 2, 0], [0, 1, 2, 3])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(3, 2))


def test_streams_have_positions_only(tmp_path):
    with pytest.raises(ArgumentError, match="no fixed order"):
        WithSampleIds(Stream())
    cached = cache_teacher(nn.Identity(), DataLoader(Stream(), batch_size=2), tmp_path / "c")
    assert cached.shape == (3, 2)
    cached.check(dataset=data())  # nothing is known about a stream's samples


def test_splitting_batches():
    rest, ids = split_sample_ids([torch.ones(2, 4), torch.tensor([3, 4], dtype=torch.int32)])
    assert rest.shape == (2, 4)
    assert ids.dtype == torch.int64
    with pytest.raises(ArgumentError, match="holds no sample ids"):
        split_sample_ids(torch.ones(2))
    with pytest.raises(ArgumentError, match=r"float32 tensor of shape \[2\]"):
        split_sample_ids([torch.ones(2, 4), torch.ones(2)])
