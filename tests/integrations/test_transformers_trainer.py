"""The transformers Trainer against the same training in a loop of our own."""

from __future__ import annotations

import logging

import pytest

transformers = pytest.importorskip("transformers")  # an optional test group
pytest.importorskip("accelerate")

import torch  # noqa: E402
from integration_runs import PLATEAU, SCHEDULE, SMALLER, by_hand, network, samples  # noqa: E402
from torch import nn  # noqa: E402

from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, ScheduleError  # noqa: E402
from distiller_ng.integrations.transformers import compress_trainer  # noqa: E402


class Classifier(nn.Module):
    """What the Trainer expects: named inputs, and an output with a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs, labels=None):
        logits = self.body(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class InOrder(transformers.Trainer):
    """Reads the samples in their order, as the loop does that it is compared with."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(samples())


def trainer(folder, *, kind=InOrder, optimizer=None, **arguments):
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 4, "max_grad_norm": 0.0} | arguments
    model = Classifier()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    return kind(
        model=model,
        args=transformers.TrainingArguments(
            folder, use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", **settings
        ),
        train_dataset=[{"inputs": x, "labels": y} for x, y in samples()],
        eval_dataset=[{"inputs": x, "labels": y} for x, y in samples()],
        optimizers=(optimizer, None),
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_trainer_trains_what_a_loop_of_our_own_trains(tmp_path, accumulate):
    one = trainer(tmp_path, gradient_accumulation_steps=accumulate, save_strategy="no")
    compression = compress_trainer(one, SCHEDULE, module="body")
    one.train()
    expected = by_hand(accumulate=accumulate).state_dict()
    for name, value in one.model.body.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert (one.model.body[0].weight == 0).sum() == 36
    assert compression.summary is not None


def test_training_resumed_from_a_checkpoint_is_the_same(tmp_path):
    first = trainer(tmp_path, save_strategy="epoch")
    compress_trainer(first, SCHEDULE, module="body")
    first.train()
    second = trainer(tmp_path / "second", save_strategy="no")
    compress_trainer(second, SCHEDULE, module="body")
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    expected = first.model.body.state_dict()
    for name, value in second.model.body.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    (tmp_path / "checkpoint-12" / "distiller_ng.pt").unlink()
    third = trainer(tmp_path / "third", save_strategy="no")
    compress_trainer(third, SCHEDULE, module="body")
    with pytest.raises(CheckpointError, match="saved without a schedule"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_training_goes_on_from_every_step_the_last_of_an_epoch_too(tmp_path):
    first = trainer(tmp_path, save_strategy="steps", save_steps=1, gradient_accumulation_steps=4)
    compress_trainer(first, SCHEDULE, module="body")
    first.train()
    for step in (2, 3):  # epochs have two steps, of 4 and of 2 minibatches
        second = trainer(tmp_path / "second", save_strategy="no", gradient_accumulation_steps=4)
        compress_trainer(second, SCHEDULE, module="body")
        second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        for name, value in second.model.body.state_dict().items():
            assert torch.allclose(value, first.model.body.state_dict()[name], atol=1e-6), (step, name)


def test_training_twice_is_refused_and_so_are_two_schedules(tmp_path):
    one = trainer(tmp_path, save_strategy="no", num_train_epochs=1)
    compress_trainer(one, SCHEDULE, module="body")
    one.train()
    with pytest.raises(LifecycleError, match=r"train\(\) begins again at epoch 0, but the schedule has seen epoch 0"):
        one.train()
    with pytest.raises(LifecycleError, match="was called for this trainer already"):
        compress_trainer(one, SCHEDULE, module="body")


def test_rates_of_a_recipe_replace_those_of_the_trainer(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}\n"
        "  - !SetLearningRateModifier {start_epoch: 1.0, learning_rate: 0.05}\n"
    )
    one, seen = trainer(tmp_path, save_strategy="no", num_train_epochs=2), []
    compress_trainer(one, recipe, module="body")
    one.optimizer.register_step_pre_hook(lambda *_: seen.append(one.optimizer.param_groups[0]["lr"]))
    one.train()
    assert seen == [0.4] * 6 + [0.05] * 6


def test_a_model_that_got_smaller_is_saved_and_resumed(tmp_path):
    whole = by_hand(schedule=SMALLER).state_dict()
    first = trainer(tmp_path, save_strategy="epoch")
    compress_trainer(first, SMALLER, module="body")
    first.train()
    second = trainer(tmp_path / "second", save_strategy="no")
    compress_trainer(second, SMALLER, module="body")
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert list(second.model.body.state_dict()) == list(whole)
    for name, value in second.model.body.state_dict().items():
        assert torch.allclose(value, whole[name], atol=1e-6), name


def test_a_last_step_of_fewer_minibatches_is_scaled_as_the_trainer_scales_it(tmp_path):
    one = trainer(tmp_path, gradient_accumulation_steps=4, save_strategy="no", num_train_epochs=1)
    only_l1 = {"regularizers": SCHEDULE["regularizers"], "policies": [SCHEDULE["policies"][1]]}
    seen = []
    compression = compress_trainer(one, only_l1, module="body")
    policy = compression.scheduler.entries[0].policy
    own = policy.before_backward_pass

    def spy(ctx):
        result = own(ctx)
        seen.append((float(ctx.loss.detach()), float(result.overall_loss.detach() - ctx.loss.detach())))
        return result

    policy.before_backward_pass = spy
    gradients = []
    one.optimizer.register_step_pre_hook(lambda *_: gradients.append(one.model.body[2].weight.grad.clone()))
    weights = []
    one.optimizer.register_step_post_hook(lambda *_: weights.append(one.model.body.state_dict()["2.weight"].clone()))
    before = network()
    one.train()
    # 6 minibatches in steps of 4 and 2: policies see every loss at its full scale
    batches = list(torch.utils.data.DataLoader(samples(), batch_size=4))
    losses = [float(nn.functional.cross_entropy(before(x), y)) for x, y in batches[:4]]
    assert [loss for loss, _ in seen[:4]] == pytest.approx(losses, rel=1e-5)
    assert all(term == pytest.approx(0.05 * float(w.abs().sum()), rel=1e-4) for (_, term), w in
               zip(seen, [before[2].weight] * 4 + [weights[0]] * 2, strict=True))  # fmt: skip
    loss = sum(nn.functional.cross_entropy(before(x), y) for x, y in batches[:4]) / 4
    (loss + 0.05 * before[2].weight.abs().sum()).backward()
    assert torch.allclose(gradients[0], before[2].weight.grad, atol=1e-5)


def test_names_begin_at_the_model_without_module(tmp_path):
    with pytest.raises(ScheduleError, match=r"'0\.weight' matches no parameter of the model.*body\.0\.weight"):
        compress_trainer(trainer(tmp_path), SCHEDULE)
    with pytest.raises(ArgumentError, match="has no module 'head'"):
        compress_trainer(trainer(tmp_path), SCHEDULE, module="head")


def test_metrics_of_the_evaluation_reach_plateaus(tmp_path):
    class Flat(InOrder):
        def evaluation_loop(self, *args, **kwargs):
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics["eval_flat"] = 1.0
            return output

    one = trainer(tmp_path, kind=Flat, eval_strategy="epoch", save_strategy="no", num_train_epochs=3)
    compress_trainer(one, PLATEAU, monitor={"min": "eval_flat"})
    one.train()
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.004)
    other = trainer(tmp_path, eval_strategy="epoch", save_strategy="no")
    compress_trainer(other, PLATEAU, monitor={"min": "eval_flat"})
    with pytest.raises(ArgumentError, match="has no 'eval_flat'"):
        other.train()
    never = trainer(tmp_path, eval_strategy="steps", eval_steps=4, save_strategy="no")
    compress_trainer(never, PLATEAU, monitor={"min": "eval_loss"})
    with pytest.raises(LifecycleError, match=r"no evaluation ran after epoch 0: give eval_strategy='epoch'"):
        never.train()
    short = trainer(tmp_path, kind=Flat, eval_strategy="epoch", save_strategy="no", max_steps=8)
    compression = compress_trainer(short, PLATEAU, monitor={"min": "eval_flat"})
    short.train()  # ends inside the second epoch
    assert compression.summary is not None


@pytest.mark.parametrize("engine", ["deepspeed", "fsdp"])
def test_engines_that_own_the_step_are_refused_by_name(tmp_path, engine):
    one = trainer(tmp_path)
    setattr(one.args, engine, {"zero_optimization": {"stage": 2}} if engine == "deepspeed" else ["full_shard"])
    with pytest.raises(LifecycleError, match=f"the trainer runs {engine}, whose engine owns"):
        compress_trainer(one, SCHEDULE, module="body")
    two = trainer(tmp_path)
    setattr(two, f"is_{engine}_enabled", True)  # by accelerate's own configuration
    with pytest.raises(LifecycleError, match=engine):
        compress_trainer(two, SCHEDULE, module="body")


def test_a_real_text_classifier_is_pruned(tmp_path):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2
    )
    model = transformers.BertForSequenceClassification(config)
    texts = [{"input_ids": torch.randint(1, 40, (6,)), "labels": torch.tensor(number % 2)} for number in range(16)]
    one = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            tmp_path, use_cpu=True, report_to=[], disable_tqdm=True, num_train_epochs=3, save_strategy="no"
        ),
        train_dataset=texts,
    )
    schedule = {
        "pruners": {"p": {"class": "AutomatedGradualPruner", "initial_sparsity": 0.0, "final_sparsity": 0.5,
                          "weights": [r"re:bert\.encoder\..*dense\.weight"]}},
        "policies": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 2, "frequency": 1}],
    }  # fmt: skip
    compression = compress_trainer(one, schedule)
    one.train()
    dense = [layer for name, layer in model.bert.encoder.named_modules() if name.endswith("dense")]
    assert [float((layer.weight == 0).float().mean()) for layer in dense] == [0.5] * 3
    assert compression.summary is not None
