"""The examples for Lightning, transformers, accelerate and early exits run, resume, and say what is true."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name, monkeypatch, file="train"):
    monkeypatch.syspath_prepend(str(EXAMPLES / name))
    spec = importlib.util.spec_from_file_location(f"example_{name}_{file}", EXAMPLES / name / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lightning_thins_and_resumes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lightning")  # an optional test group
    pytest.importorskip("sklearn")
    schedule = tmp_path / "schedule.yaml"
    text = (EXAMPLES / "lightning" / "schedule.yaml").read_text()
    text = text.replace("starting_epoch: 4", "starting_epoch: 0").replace("ending_epoch: 8", "ending_epoch: 1")
    schedule.write_text(text.replace("epochs: [8]", "epochs: [1]"))
    train = script("lightning", monkeypatch)
    flags = ["--schedule", str(schedule), "--batch-size", "128", "--epochs", "3"]
    whole = train.main([*flags, "--out", str(tmp_path / "a")])
    assert whole["macs"] == pytest.approx(0.5, abs=0.02) and len(whole["top1"]) == 3
    assert "made smaller" in capsys.readouterr().out
    resumed = train.main([*flags, "--out", str(tmp_path / "b"), "--resume", str(tmp_path / "a" / "epoch=1.ckpt")])
    assert resumed["parameters"] == whole["parameters"] and len(resumed["top1"]) == 1
    assert [type(m) for m in resumed["model"].modules()] == [type(m) for m in whole["model"].modules()]


def test_accelerate_prunes_and_resumes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate")  # an optional test group
    pytest.importorskip("sklearn")
    train = script("accelerate", monkeypatch)
    flags = ["--batch-size", "128", "--epochs", "9"]
    whole = train.main([*flags, "--out", str(tmp_path / "a")])
    assert {round(one.achieved, 3) for one in whole["summary"].parameters} == {0.9}
    resumed = train.main([*flags, "--out", str(tmp_path / "b"), "--resume", str(tmp_path / "a" / "epoch_6")])
    assert resumed["top1"] == {epoch: whole["top1"][epoch] for epoch in (7, 8)}
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(value, resumed["model"].state_dict()[name]), name
    assert "90.00%    90.00%" in capsys.readouterr().out


@pytest.mark.slow
def test_transformers_prunes_and_resumes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")  # an optional test group
    pytest.importorskip("accelerate")
    train = script("transformers", monkeypatch)
    flags = ["--samples", "128", "--batch-size", "32", "--epochs", "5", "--dense-epochs", "1"]
    whole = train.main([*flags, "--out", str(tmp_path / "a")])
    assert all(one.achieved == pytest.approx(0.8, abs=1e-3) for one in whole["summary"].parameters)
    checkpoint = str(tmp_path / "a" / "pruned" / "checkpoint-8")
    resumed = train.main([*flags, "--out", str(tmp_path / "b"), "--resume", checkpoint])
    assert resumed["pruned"] == whole["pruned"]
    assert "paragraphs to learn from" in capsys.readouterr().out


@pytest.mark.slow
def test_the_texts_are_real_and_their_parts_are_disjoint(monkeypatch):
    topics = script("transformers", monkeypatch, "topics")
    texts = topics.texts_by_topic()
    assert len(texts) > 1000 and len({text for text, _ in texts}) == len(texts)
    assert {topic for _, topic in texts} == set(range(len(topics.TOPICS)))
    train, test, vocabulary = topics.load()
    assert len(test) == len(texts) // 5 and len(train) + len(test) == len(texts)
    assert int(max(one["input_ids"].max() for one in train + test)) < vocabulary


def test_early_exits_save_what_they_say(monkeypatch, capsys):
    pytest.importorskip("sklearn")
    train = script("early_exit", monkeypatch)
    rows = train.main(["--epochs", "2", "--seconds", "0.05"])
    assert [row["threshold"] for row in rows] == list(train.THRESHOLDS)
    assert rows[0]["shares"] == [0.0, 0.0, 1.0] and rows[0]["macs"] == 1.0
    assert all(sum(row["shares"]) == pytest.approx(1) for row in rows)
    assert rows[-1]["macs"] < rows[0]["macs"] and rows[-1]["top1"] > 80
    model, _ = train.build()
    costs = train.macs_until(model)
    # convolutions of 1x32x9, 32x64x9 and 64x64x9 at 8x8, 8x8 and 4x4; the exits' classifiers; the network's own
    assert costs == [18432 + 1280, 18432 + 1179648 + 1280 + 2560, 18432 + 1179648 + 589824 + 1280 + 2560 + 10240]
    assert "leave at exit 1" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate", "early_exit"])
def test_every_example_has_a_page_with_its_command_and_results(name):
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    assert f"python examples/{name}/train.py" in page and "top-1" in page
    assert len((EXAMPLES / name / "train.py").read_text(encoding="utf-8").splitlines()) <= 200
