import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from distiller_ng.errors import ArgumentError, CheckpointError, ExportError
from distiller_ng.export.packed import save_packed
from distiller_ng.export.packed_bits import pack_bits, packed_length, unpack_bits
from distiller_ng.export.packed_encoding import WeightGrid, decode, encode
from distiller_ng.export.packed_loading import load_packed
from distiller_ng.export.sparse import save_sparse
from distiller_ng.quantization import PostTrainLinearQuantizer
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.exporters import export_model
from distiller_ng.thinning import remove_filters


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        y = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return self.fc(y.mean((2, 3)))


def net(seed=0):
    torch.manual_seed(seed)
    model = Net()
    model.bn1.running_mean.uniform_(-1, 1)
    model.bn1.running_var.uniform_(0.5, 2)
    return model.eval()


def images(n=2):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(model, sparsity):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(torch.rand_like(parameter) > sparsity)
    return model


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_bits_come_back(bits, count):
    values = torch.randint(0, 2**bits, (count,))
    packed = pack_bits(values, bits)
    assert packed.numel() == packed_length(count, bits)
    assert unpack_bits(packed, bits, count).tolist() == values.tolist()


def test_bits_are_laid_out_lowest_first():
    assert pack_bits(torch.tensor([1, 2, 3]), 2).tolist() == [0b111001]
    assert pack_bits(torch.tensor([5, 3]), 4).tolist() == [0x35]


def test_chunks_join(monkeypatch):
    monkeypatch.setattr("distiller_ng.export.packed_bits._CHUNK", 16)
    values = torch.randint(0, 8, (101,))
    assert unpack_bits(pack_bits(values, 3), 3, 101).tolist() == values.tolist()


def test_values_that_do_not_fit_and_wrong_lengths():
    with pytest.raises(ArgumentError, match="0 .. 4 do not fit 2 bits"):
        pack_bits(torch.tensor([0, 4]), 2)
    with pytest.raises(CheckpointError, match="9 values of 2 bits take 3 bytes"):
        unpack_bits(torch.zeros(4, dtype=torch.uint8), 2, 9)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64]
)
def test_a_mask_takes_one_bit_a_value(dtype):
    tensor = (torch.arange(4000) % 10 == 0).to(dtype).reshape(40, 100) * 3
    encoded = encode("w", tensor, coded=False)
    assert encoded.entry["encoding"] == "mask"
    assert encoded.file_bytes == 500 + 400 * tensor.element_size()
    assert torch.equal(decode("w", encoded.entry, encoded.tensors), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(100, 100),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.full((3,), float("nan")),
        torch.ones(50, dtype=torch.bool),
        torch.randn(4, 4, dtype=torch.complex64),
    ],
)
def test_what_does_not_shrink_is_stored_as_it_is(tensor):
    encoded = encode("w", tensor, coded=False)
    assert encoded.entry == {"encoding": "dense"}


def test_nan_and_infinity_survive_a_mask():
    tensor = torch.zeros(1000)
    tensor[3], tensor[4], tensor[5] = float("nan"), float("inf"), -0.0
    entry = encode("w", tensor, coded=False)
    assert entry.entry["encoding"] == "mask"
    assert torch.equal(decode("w", entry.entry, entry.tensors).nan_to_num(7.0), tensor.nan_to_num(7.0))


def test_group_grids_cover_rows_that_are_no_multiple():
    grid = WeightGrid(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]]), 0, 3)
    assert grid.values(torch.tensor([[1, 1, 1, 1, 2]]), torch.float32).tolist() == [[1.0, 1.0, 1.0, 0.0, 2.0]]
    assert grid.integers(torch.tensor([[1.0, 1.0, 1.0, 0.0, 2.0]])).tolist() == [[1, 1, 1, 1, 2]]


def test_few_distinct_values_become_a_codebook():
    tensor = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0])[torch.randint(0, 4, (1000,))]
    encoded = encode("w", tensor)
    assert encoded.entry["encoding"] == "codebook"
    assert encoded.entry["bits"] == 2
    assert encoded.file_bytes == 250 + 16
    assert torch.equal(decode("w", encoded.entry, encoded.tensors), tensor)


@pytest.mark.parametrize(("bits", "group_size"), [(4, None), (4, 16), (3, 5), (2, None), (8, 64), (1, None)])
def test_rounded_weights_come_back(tmp_path, bits, group_size):
    model = net()
    before = model.conv2.weight.clone()
    save_packed(model, tmp_path / "net.safetensors", bits=bits, group_size=group_size, keep=["fc"])
    loaded = load_packed(net, tmp_path / "net.safetensors")
    assert torch.equal(model.conv2.weight, before)
    assert torch.equal(loaded.fc.weight, model.fc.weight)
    rows = loaded.conv1.weight.flatten(1)
    assert max(len(row.unique()) for row in rows) <= 2**bits * (1 if group_size is None else 6)
    ranges = model.conv1.weight.flatten(1).amax(1) - model.conv1.weight.flatten(1).amin(1)
    steps = ranges / (2**bits - 1)
    assert bool(((loaded.conv1.weight - model.conv1.weight).flatten(1).abs() <= steps[:, None] * 1.001).all())


def test_four_bits_take_half_a_byte(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    report = save_packed(model, tmp_path / "net.safetensors", bits=4, group_size=64)
    (row,) = report.rows
    assert (row.encoding, row.bits) == ("grid", 4)
    assert row.stored_bytes == 256 * 256 // 2 + 256 * 4 * 5
    assert report.file_bytes == (tmp_path / "net.safetensors").stat().st_size < 40_000
    assert "grid" in str(report)


QAT = [
    ("DorefaQuantizer", {"bits_activations": 4, "bits_weights": 3}),
    ("WRPNQuantizer", {"bits_activations": 4, "bits_weights": 4}),
    ("PACTQuantizer", {"bits_activations": 4, "bits_weights": 2}),
    ("LSQQuantizer", {"bits_activations": 4, "bits_weights": 4}),
    ("XNORQuantizer", {}),
    ("QuantAwareTrainRangeLinearQuantizer", {"bits_activations": 8, "bits_weights": 4, "per_channel_wts": True}),
    ("QuantAwareTrainRangeLinearQuantizer", {"bits_weights": 8, "mode": "ASYMMETRIC_UNSIGNED", "bits_bias": 16}),
]


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
@pytest.mark.parametrize("keep_packed", [False, True])
@pytest.mark.parametrize(("name", "settings"), QAT)
def test_models_trained_with_quantization_compute_the_same(tmp_path, name, settings, keep_packed):
    model = pruned(net(), 0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    QUANTIZERS.get(name).cls(model, optimizer, **settings).prepare_model()
    model.train()(images(8)).sum().backward()
    optimizer.step()
    model.eval()
    report = save_packed(model, tmp_path / "net.safetensors")
    loaded = load_packed(net, tmp_path / "net.safetensors", keep_packed=keep_packed)
    assert torch.equal(loaded(images()), model(images()))
    conv = next(row for row in report.rows if row.name == "conv2.weight")
    assert conv.stored_bytes < conv.dense_bytes / 2
    if not keep_packed:
        save_packed(loaded, tmp_path / "again.safetensors")
        assert torch.equal(load_packed(net, tmp_path / "again.safetensors")(images()), model(images()))


def test_folded_batch_norms_are_in_the_weights(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantizer = QUANTIZERS.get("QuantAwareTrainRangeLinearQuantizer").cls(
        model, optimizer, bits_weights=4, bits_activations=8
    )
    quantizer.prepare_model(images())
    assert type(model.bn1).__name__ in ("PassedBatchNorm2d", "BatchNorm2d")
    model.train()(images(8)).sum().backward()
    model.eval()
    save_packed(model, tmp_path / "net.safetensors")
    assert torch.equal(load_packed(net, tmp_path / "net.safetensors")(images()), model(images()))


@pytest.mark.parametrize("settings", [{}, {"per_channel_wts": True, "mode": "ASYMMETRIC_SIGNED"}])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_alone_load_into_plain_layers(tmp_path, bits, settings):
    model = net()
    PostTrainLinearQuantizer(model, bits_activations=None, bits_parameters=bits, **settings).prepare_model(images())
    report = save_packed(model, tmp_path / "net.safetensors")
    loaded = load_packed(net, tmp_path / "net.safetensors")
    assert type(loaded.conv1) is nn.Conv2d
    assert type(loaded.bn1) is nn.Identity
    assert torch.equal(loaded(images()), model(images()))
    conv = next(row for row in report.rows if row.name == "conv2.weight")
    assert (conv.encoding.split()[0], conv.bits) == ("grid", bits)


@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
def test_quantized_activations_are_put_in_again(tmp_path):
    def prepared():
        model = net()
        PostTrainLinearQuantizer(model, bits_parameters=4).prepare_model(images())
        return model

    model = prepared()
    report = save_packed(model, tmp_path / "net.safetensors")
    for factory in (net, prepared):
        assert torch.equal(load_packed(factory, tmp_path / "net.safetensors")(images()), model(images()))
    assert next(row for row in report.rows if row.name == "conv2.wrapped_module.weight").bits == 4
    rewritten(tmp_path / "net.safetensors", lambda d: d["structure"].update(record=[]))
    with pytest.raises(CheckpointError, match="let the factory prepare the model in the same way"):
        load_packed(net, tmp_path / "net.safetensors")


def test_thinned_models_are_thinned_again(tmp_path):
    model = pruned(net(), 0.5)
    with torch.no_grad():
        model.conv1.weight[[0, 3, 4, 7]] = 0  # whole filters of both groups
        model.bn1.bias[[0, 3, 4, 7]] = 0
        model.bn1.weight[[0, 3, 4, 7]] = 0
    remove_filters(model, example_inputs=images(1))
    assert model.conv1.out_channels == 4
    save_sparse(model, tmp_path / "net.safetensors")
    assert torch.equal(load_packed(net, tmp_path / "net.safetensors")(images()), model(images()))


def test_sparse_files_shrink_with_sparsity(tmp_path):
    sizes = []
    for sparsity in (0.0, 0.5, 0.9):
        torch.manual_seed(0)
        model = pruned(nn.Sequential(nn.Linear(200, 200)), sparsity)
        report = save_sparse(model, tmp_path / "net.safetensors")
        loaded = load_packed(lambda: nn.Sequential(nn.Linear(200, 200)), tmp_path / "net.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        sizes.append(report.ratio)
    assert sizes[0] < 1.02
    assert sizes[1] == pytest.approx(0.53, abs=0.02)
    assert sizes[2] == pytest.approx(0.135, abs=0.02)


def test_half_precision_models_keep_their_dtype(tmp_path):
    model = pruned(net(), 0.8).half()
    save_sparse(model, tmp_path / "net.safetensors")
    loaded = load_packed(lambda: net().half(), tmp_path / "net.safetensors")
    assert torch.equal(loaded.conv2.weight, model.conv2.weight)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("save", [save_sparse, save_packed, lambda m, p: save_packed(m, p, bits=4)])
@pytest.mark.parametrize("keep_packed", [False, True])
def test_tied_weights_are_stored_once(tmp_path, save, keep_packed):
    model = Tied()
    report = save(model, tmp_path / "net.safetensors")
    assert [row.name for row in report.rows] == ["embedding.weight"]
    loaded = load_packed(Tied, tmp_path / "net.safetensors", keep_packed=keep_packed)
    assert loaded.head.weight is loaded.embedding.weight
    tokens = torch.arange(5)[None]
    assert torch.allclose(loaded(tokens), model(tokens), atol=2.0)


def test_parallel_wrappers_are_looked_through(tmp_path):
    model = net()
    save_sparse(nn.DataParallel(model), tmp_path / "net.safetensors")
    loaded = load_packed(lambda: nn.DataParallel(net(1)), tmp_path / "net.safetensors")
    assert torch.equal(loaded.module(images()), model(images()))


def test_packed_layers_work_inside_attention_and_transformers(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()

    save_packed(make(), tmp_path / "net.safetensors", bits=4)
    x = torch.randn(2, 3, 16)
    plain = load_packed(make, tmp_path / "net.safetensors")
    packed = load_packed(make, tmp_path / "net.safetensors", keep_packed=True)
    with torch.no_grad():
        assert torch.allclose(packed(x), plain(x), atol=1e-6)
    assert "packed" in repr(packed.linear1)


# -- wrong input ------------------------------------------------------------------------------------------------------


def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_packed(net(), path, bits=4)
    return path


def test_truncated_files(tmp_path):
    path = saved(tmp_path)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_packed(net, path)


def test_a_changed_byte_is_found(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed since it was written"):
        load_packed(net, path)


def test_foreign_files(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no description by distiller_ng"):
        load_packed(net, path)
    with pytest.raises(FileNotFoundError):
        load_packed(net, tmp_path / "none.safetensors")


def rewritten(path, change):
    """The file with another description and right checksums, as an attacker would write it."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    description = json.loads(header["description"])
    header["description"] = json.dumps(change(description) or description)
    save_file(tensors, path, metadata=header)


def entry(description, name="conv2.weight"):
    return description["entries"][name]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: entry(d).update(shape=[1 << 39, 1 << 39]),
        lambda d: entry(d).update(shape=[-8, 4, 3, 3]),
        lambda d: entry(d).update(shape="big"),
        lambda d: entry(d).update(bits=64),
        lambda d: entry(d).update(dtype="object"),
        lambda d: entry(d).update(encoding="pickle"),
        lambda d: entry(d).clear(),
        lambda d: entry(d).update(axis=7),
        lambda d: d["entries"].update({"conv2.weight": None}),
        lambda d: d.pop("structure"),
        lambda d: d["structure"].update(record=[{"transform": "run_code", "config": {}, "version": 1, "metadata": {}}]),
        lambda d: d["structure"].update(record="x"),
        lambda d: d["structure"].update(frozen={"nowhere": ["weight"]}),
        lambda d: d["structure"].update(tied={"conv1.weight": "nowhere"}),
        lambda d: d["entries"].pop("conv2.weight"),
        lambda d: [1, 2],
    ],
)
def test_descriptions_that_lie(tmp_path, change):
    path = saved(tmp_path)
    rewritten(path, change)
    with pytest.raises(CheckpointError):
        load_packed(net, path)


def test_headers_say_what_is_not_usual(tmp_path):
    from safetensors import safe_open

    with safe_open(saved(tmp_path), "pt") as file:
        header, names = dict(file.metadata()), sorted(file.keys())
    entries = json.loads(header["description"])["entries"]
    assert "bn1.weight" in names and "bn1.weight" not in entries  # stored as it is
    assert all("group_size" not in entry for entry in entries.values())
    assert len(json.loads(header["checksums"])) == len(names)
    assert sum(len(text) for text in header.values()) < 1500


def test_files_of_version_1_load(tmp_path):
    from safetensors import safe_open

    path = saved(tmp_path)
    expected = load_packed(net, path)(images())
    stored = load_file(path)
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    description = json.loads(header["description"])
    usual = {"axis": None, "group_size": None, "reciprocal": False, "masked": False}
    short = description["entries"]
    whole = {name: {"encoding": "dense"} for name in stored if name.rpartition(":")[0] not in short}
    description["entries"] = {name: {**usual, **entry} for name, entry in short.items()} | whole
    sums = dict(zip(sorted(stored), json.loads(header["checksums"]), strict=True))
    header |= {"description": json.dumps(description), "checksums": json.dumps(sums), "format_version": "1"}
    save_file(stored, path, metadata=header)
    assert torch.equal(load_packed(net, path)(images()), expected)


def test_another_model(tmp_path):
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_packed(lambda: nn.Sequential(nn.Linear(2, 2)), saved(tmp_path))


@pytest.mark.parametrize("factory", [net(), 3, lambda: 3])
def test_a_factory_builds_models(tmp_path, factory):
    with pytest.raises(ArgumentError, match="factory"):
        load_packed(factory, saved(tmp_path))


def test_wrong_arguments(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ArgumentError, match="no layer 'fcc'.*Did you mean 'fc'"):
        save_packed(net(), path, bits=4, keep=["fcc"])
    with pytest.raises(ArgumentError, match="bits must be"):
        save_packed(net(), path, bits=9)
    with pytest.raises(ArgumentError, match="group_size"):
        save_packed(net(), path, bits=4, group_size=0)
    with pytest.raises(ArgumentError, match="belong to bits"):
        save_packed(net(), path, keep=["fc"])
    model = net()
    PostTrainLinearQuantizer(model, bits_activations=None, bits_parameters=4).prepare_model(images())
    with pytest.raises(ArgumentError, match="quantized already"):
        save_packed(model, path, bits=4)
    broken = net()
    with torch.no_grad():
        broken.fc.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match="fc.weight has values that are not finite"):
        save_packed(broken, path, bits=4)
    with pytest.raises(ExportError, match="cannot be stored"):
        save_sparse(nn.LazyLinear(3), path)
    assert not path.exists()


def test_exporters_write_the_same_files(tmp_path):
    model = pruned(net(), 0.9)
    report = export_model(model, "sparse", images(), tmp_path / "net")
    assert report.path == tmp_path / "net.safetensors"
    assert report.target == "sparse"
    assert report.bytes == report.path.stat().st_size  # a header too: this model is tiny
    assert report.floating["conv2"] == "stored as mask, computed in floating point"
    assert torch.equal(load_packed(net, report.path)(images()), model(images()))
    packed = export_model(net(), "packed", images(), tmp_path / "packed", bits=4, keep=["fc"])
    assert {layer.name: layer.weight_bits for layer in packed.layers} == {"conv1": 4, "conv2": 4, "fc": None}
    assert packed.details["file"].file_bytes == packed.bytes
    with pytest.raises(ArgumentError, match="pass path"):
        export_model(model, "sparse", images())
    with pytest.raises(ArgumentError, match="unknown option 'bit'. Did you mean 'bits'"):
        export_model(model, "packed", images(), tmp_path / "x", bit=4)
