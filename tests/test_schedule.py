"""Learning rate and weight decay over a training, worked out by hand."""

import math

import pytest
import torch
from pydantic import ValidationError

from glimpseg.data.loader import Sampling
from glimpseg.errors import TrainingError
from glimpseg.method import Learner, Progress
from glimpseg.recipe import BUDGET, Data, Init, Optim, Recipe, block_start, cosine
from glimpseg.region import Label
from glimpseg.training.loop import is_due
from glimpseg.training.state import TrainingState

QUARTER = math.sqrt(0.5)
"""Cosine of 45 degrees, a quarter of the way along half a cosine."""


@pytest.mark.parametrize(
    ("step", "every", "first"), [(0, 3, 0), (2, 3, 0), (3, 3, 3), (5, 3, 3), (6, 3, 6), (7, 3, 6), (4, 1, 4)]
)
def test_a_block_begins_at_a_multiple_of_its_length(step, every, first):
    assert block_start(step, every) == first


@pytest.mark.parametrize(
    ("step", "value"),
    # From 5 to 1: the middle is 3, the amplitude 2.
    [(0, 5), (2, 3 + 2 * QUARTER), (4, 3), (6, 3 - 2 * QUARTER), (8, 1)],
)
def test_half_a_cosine_runs_from_first_to_last(step, value):
    assert cosine(step, 8, first=5, last=1) == pytest.approx(value)


def test_half_a_cosine_may_rise():
    assert [cosine(step, 4, first=0, last=2) for step in (0, 1, 2, 4)] == pytest.approx([0, 1 - QUARTER, 1, 2])


def test_a_warm_up_is_a_line_from_zero_to_the_first_value_both_ends_included():
    # Five steps: 0, 1/4, 2/4, 3/4, 4/4 of 8. Step 5 begins the cosine over the other four, at 8 again.
    expected = [0, 2, 4, 6, 8, 8, 5 + 3 * QUARTER, 5, 5 - 3 * QUARTER, 2]
    assert [cosine(step, 9, first=8, last=2, warmup=5) for step in range(10)] == pytest.approx(expected)


def test_a_warm_up_of_two_steps_is_one_at_zero_and_one_at_the_first_value():
    assert [cosine(step, 4, first=8, last=2, warmup=2) for step in range(5)] == pytest.approx([0, 8, 8, 5, 2])


def test_a_warm_up_of_one_step_is_a_step_at_zero():
    assert [cosine(step, 3, first=8, last=2, warmup=1) for step in range(4)] == pytest.approx([0, 8, 5, 2])


# The learning rate


def test_the_polynomial_begins_at_the_full_rate_and_ends_one_step_before_zero():
    optim = Optim(steps=100, learning_rate=0.01, power=2)
    # (1 - step / 100) ** 2.
    assert [optim.rate(step) for step in (0, 50, 99)] == pytest.approx([0.01, 0.0025, 0.01 * 1e-4])
    assert optim.rate(100) == 0


def test_the_exponent_is_nine_tenths_as_in_nnunet():
    # 1/2 ** 0.9 = exp(-0.9 * log 2) = exp(-0.623832).
    assert Optim(steps=10, learning_rate=1.0).rate(5) == pytest.approx(0.535887, abs=1e-6)


def test_a_warm_up_multiplies_the_polynomial_by_a_rising_line():
    optim = Optim(steps=10, learning_rate=1.0, warmup=3, power=1)
    # 1/4, 2/4, 3/4, 4/4, then 1, times 1 - step / 10.
    expected = [0.25 * 1, 0.5 * 0.9, 0.75 * 0.8, 1 * 0.7, 1 * 0.6]
    assert [optim.rate(step) for step in range(5)] == pytest.approx(expected)


def test_the_rate_changes_once_an_epoch_but_warms_up_every_step():
    optim = Optim(steps=8, learning_rate=1.0, warmup=2, power=1, epoch=4)
    # The polynomial of the epoch's first step: 1, then 1 - 4 / 8. The warm-up: 1/3, 2/3, 1.
    assert [optim.rate(step) for step in range(8)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5, 0.5, 0.5, 0.5])


def test_a_cosine_takes_the_place_of_the_polynomial():
    optim = Optim(steps=9, learning_rate=8.0, cosine_to=2.0, warmup=5)
    # As the warm-up above: a line to 8, and half a cosine down to 2.
    assert [optim.rate(step) for step in (0, 1, 4, 5, 7, 9)] == pytest.approx([0, 2, 8, 8, 5, 2])


def test_a_cosine_to_zero_is_a_cosine():
    assert Optim(steps=4, learning_rate=2.0, cosine_to=0.0).rate(1) == pytest.approx(1 + QUARTER)


def test_a_cosine_changes_once_an_epoch():
    optim = Optim(steps=8, learning_rate=5.0, cosine_to=1.0, epoch=4)
    assert [optim.rate(step) for step in (0, 3, 4, 7)] == pytest.approx([5, 5, 3, 3])


# The weight decay


def test_the_weight_decay_is_constant_unless_told_otherwise():
    optim = Optim(steps=8, weight_decay=0.5)
    assert [optim.decay(step) for step in (0, 7)] == [0.5, 0.5]


def test_the_weight_decay_rises_along_half_a_cosine_without_the_warm_up():
    optim = Optim(steps=8, learning_rate=1.0, weight_decay=0.0, weight_decay_to=2.0, warmup=3)
    assert [optim.decay(step) for step in (0, 2, 4, 8)] == pytest.approx([0, 1 - QUARTER, 1, 2])


def test_the_weight_decay_changes_once_an_epoch():
    optim = Optim(steps=8, weight_decay=0.0, weight_decay_to=2.0, epoch=4)
    assert [optim.decay(step) for step in (0, 3, 4, 7)] == pytest.approx([0, 0, 1, 1])


# What reaches the optimiser


class Pair(Learner):
    """Two numbers: one with the common weight decay, one with its own."""

    def __init__(self):
        super().__init__()
        self.common, self.own = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))

    def losses(self, batch, progress):
        return {"sum": self.common.sum() + self.own.sum()}

    def parameter_groups(self):
        return [{"params": [self.common]}, {"params": [self.own], "scale": 0.1, "weight_decay": 0.25}]


def stepped(optim, step):
    learner = Pair()
    training = TrainingState.begin(learner, optim, torch.device("cpu"))
    sum(learner.losses(None, None).values()).backward()
    return learner, training.optimizer.param_groups, training.step(optim, Progress(step, optim.steps))


def test_a_step_takes_the_rate_and_the_decay_of_its_number():
    optim = Optim(steps=8, learning_rate=0.5, power=1, weight_decay=0.0, weight_decay_to=2.0, ema=0)
    _, groups, measured = stepped(optim, 4)
    # Half of the way: 0.5 / 2; from 0 to 2: 1. The second group runs at a tenth and keeps its own decay.
    assert measured["learning_rate"] == pytest.approx(0.25)
    assert [group["lr"] for group in groups] == pytest.approx([0.25, 0.025])
    assert [group["weight_decay"] for group in groups] == pytest.approx([1, 0.25])


@pytest.mark.parametrize(("nesterov", "moved"), [(True, 1.5), (False, 1.0)])
def test_a_first_step_of_sgd_is_worked_out_by_hand(nesterov, moved):
    optim = Optim(
        optimizer="sgd", momentum=0.5, nesterov=nesterov, learning_rate=0.1, weight_decay=0.0, max_norm=None, steps=1,
        ema=0,
    )  # fmt: skip
    learner, _, _ = stepped(optim, 0)
    # Gradient 1; Nesterov adds half of it once more.
    assert learner.common.item() == pytest.approx(1 - 0.1 * moved)


def test_a_first_step_of_adamw_is_the_rate_and_the_decay_times_the_rate():
    learner, _, _ = stepped(Optim(learning_rate=0.1, weight_decay=0.5, steps=1, ema=0), 0)
    # Decoupled: 1 * (1 - 0.1 * 0.5) - 0.1. The second: rate 0.01, decay 0.25.
    assert learner.common.item() == pytest.approx(0.95 - 0.1, abs=1e-5)
    assert learner.own.item() == pytest.approx(1 - 0.01 * 0.25 - 0.01, abs=1e-5)


def test_no_gradient_is_left_after_a_step():
    learner, _, _ = stepped(Optim(steps=1, ema=0), 0)
    assert learner.common.grad is None


def plain(**changes):
    """Gradient descent by the gradient itself."""
    fields = {"learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "steps": 1, "ema": 0}
    return Optim(optimizer="sgd", **{**fields, **changes})


def test_a_gradient_is_shortened_to_the_largest_norm():
    learner, _, measured = stepped(plain(max_norm=0.25), 0)
    # Each gradient is 1, so each is shortened to 1/4; the second runs at a tenth and decays by a quarter of itself.
    assert learner.common.item() == pytest.approx(1 - 0.25)
    assert learner.own.item() == pytest.approx(1 - 0.1 * (0.25 + 0.25))
    # The norm is that before.
    assert measured["gradient_norm"] == pytest.approx(2**0.5)


def test_a_method_is_told_of_each_step(monkeypatch):
    told = []
    monkeypatch.setattr(Pair, "after_step", lambda self, progress: told.append((progress, self.common.item())))
    stepped(plain(max_norm=None, steps=4, power=1), 2)
    assert told == [(Progress(2, 4), pytest.approx(1 - 0.5))]  # after the weights have moved, by half of the rate


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(monkeypatch):
    monkeypatch.setattr(Pair, "losses", lambda self, batch, progress: {"sum": torch.inf * self.common.sum()})
    with pytest.raises(TrainingError) as stopped:
        stepped(plain(steps=8), 3)
    assert str(stopped.value) == (
        "The gradient's norm is inf at step 3, though every loss term is finite. The last checkpoint is untouched. "
        "Lower optim.learning_rate, or set optim.precision=fp32."
    )


@pytest.mark.parametrize(("done", "due"), [(1, False), (4, True), (5, False), (8, True), (10, True), (9, False)])
def test_something_is_due_every_so_many_steps_and_at_the_end(done, due):
    assert is_due(done, every=4, steps=10) is due


# Recipes that cannot be


@pytest.mark.parametrize("name", ["steps", "accumulate", "epoch"])
def test_a_count_of_steps_is_at_least_one(name):
    with pytest.raises(ValidationError, match=f"{name} should be at least 1, not 0"):
        Optim(**{name: 0})
    assert getattr(Optim(**{name: 1}), name) == 1


@pytest.mark.parametrize(("epoch", "warmup"), [(3, 3), (3, 2), (1, 10), (1, 11)])
def test_a_warm_up_before_a_cosine_lies_between_an_epoch_and_all_steps(epoch, warmup):
    with pytest.raises(
        ValidationError, match=rf"between epoch \({epoch}\) and steps \(10\) .* not {warmup}; 0 for none"
    ):
        Optim(steps=10, cosine_to=0.0, epoch=epoch, warmup=warmup)


@pytest.mark.parametrize(
    "fields", [{"cosine_to": 0.0, "warmup": 4}, {"cosine_to": 0.0, "warmup": 9}, {"cosine_to": 0.0}, {"warmup": 10}]
)
def test_other_warm_ups_are_allowed(fields):
    assert Optim(steps=10, epoch=3, **fields).warmup == fields.get("warmup", 0)


@pytest.mark.parametrize("norm", [0.0, -1.0])
def test_a_norm_of_zero_is_refused(norm):
    with pytest.raises(ValidationError, match=f"max_norm should be above 0, or null for no clipping, not {norm}"):
        Optim(max_norm=norm)


def test_a_norm_below_one_is_allowed():
    assert Optim(max_norm=0.5).max_norm == 0.5


def test_a_batch_is_divided_evenly_among_its_passes():
    data = Data(sampling=Sampling(batch=4))
    with pytest.raises(ValidationError, match=r"data.sampling.batch \(4\) should be a multiple .* \(3\)"):
        Recipe(method="unet", config={}, data=data, optim=Optim(accumulate=3))
    assert Recipe(method="unet", config={}, data=data, optim=Optim(accumulate=2)).optim.accumulate == 2


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_the_share_that_is_learned_from_lies_above_0_and_up_to_1(share):
    with pytest.raises(ValidationError, match="labelled"):
        Data(labelled=share)


def test_the_labels_of_a_recipe_are_values_of_a_label_map():
    recipe = Recipe(method="unet", config={}, labels=("ET", "RC"))
    assert recipe.label_values == (Label.ET, Label.RC)


def test_the_parts_that_are_taken_over_are_named():
    assert Init(transfer="encoder+decoder").parts == ("encoder", "decoder")
    assert Init().parts == ("encoder",)


def test_the_defaults_are_nnunets():
    """Isensee et al.'s: 1000 epochs of 250 steps, momentum 0.99 of Nesterov, decay 3e-5, power 0.9, norm 12."""
    optim = Optim()
    assert (optim.steps, optim.momentum, optim.nesterov) == (1000 * 250, 0.99, True)
    assert (optim.weight_decay, optim.power, optim.max_norm) == (3e-5, 0.9, 12)
    assert BUDGET.steps == 1000 * 250
