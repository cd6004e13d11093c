"""The moving average of the weights, worked out by hand."""

import pytest
import torch
from torch import nn

from glimpseg.method import Learner, Progress
from glimpseg.recipe import Optim
from glimpseg.training.ema import averaged_copy
from glimpseg.training.state import TrainingState

CPU = torch.device("cpu")


class Number(Learner):
    """One weight and one buffer."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("statistic", torch.tensor([0.0]))

    def losses(self, batch, progress):
        return {"weight": self.weight.sum()}

    def after_step(self, progress):
        self.statistic += 1


def averages(values, decay):
    """The average after each of these weights."""
    learner = Number()
    averaged, found = averaged_copy(learner, decay), []
    for value in values:
        learner.weight.data.fill_(value)
        averaged.update_parameters(learner)
        found.append(averaged.module.weight.item())
    return found


def test_the_first_weights_are_the_average():
    assert averages([7.0], decay=0.999) == [7]


def test_early_averages_keep_the_share_1_plus_t_of_10_plus_t():
    # Kept of the old: 2/11, then 3/12: 2/11 * 1 + 9/11 * 12 = 10, then 1/4 * 10 + 3/4 * 2 = 4.
    assert averages([1.0, 12.0, 2.0], decay=0.999) == pytest.approx([1, 10, 4])


def test_later_averages_move_by_one_minus_the_decay():
    # (1 + t) / (10 + t) is 0.8 at t = 35; all weights are 0 until then. After it, a fifth of the way to 10 a step.
    found = averages([0.0] * 40 + [10.0, 10.0], decay=0.8)
    assert found[39:] == pytest.approx([0, 2, 3.6])


def test_a_high_decay_hardly_moves():
    # (1 + t) / (10 + t) is 0.9 at t = 80, so the decay holds at 90: 0.9 * 5. A rate of 0.9 would leave 0.5.
    assert averages([5.0] * 90 + [0.0], decay=0.9)[-1] == pytest.approx(4.5)


def test_the_decay_is_the_most_that_is_kept():
    # 2/11 would be kept of the second average, but 0.1 is less: 0.1 * 1 + 0.9 * 11 = 10.
    assert averages([1.0, 11.0], decay=0.1) == pytest.approx([1, 10])


def test_buffers_are_the_latest_and_no_average():
    learner = Number()
    averaged = averaged_copy(learner, 0.999)
    for value in (1.0, 4.0, 9.0):
        learner.statistic.fill_(value)
        averaged.update_parameters(learner)
    assert float(averaged.module.statistic) == 9


def test_the_average_has_its_own_weights():
    learner = Number(3.0)
    averaged = averaged_copy(learner, 0.999)
    averaged.update_parameters(learner)
    learner.weight.data.fill_(5.0)
    assert averaged.module.weight.item() == 3


# In training


def trained(decay, steps=2):
    """Steps of plain gradient descent by 1 from 0: the weight is -1, -2, ..."""
    optim = Optim(
        optimizer="sgd", momentum=0.0, nesterov=False, learning_rate=1.0, power=0, weight_decay=0.0, max_norm=None,
        steps=steps, ema=decay,
    )  # fmt: skip
    learner = Number()
    training = TrainingState.begin(learner, optim, CPU)
    for step in range(steps):
        learner.losses(None, None)["weight"].backward()
        training.step(optim, Progress(step, steps))
    return training


def test_the_average_follows_each_step_and_is_the_model():
    kept = trained(0.999).model_weights()
    # -1, then 2/11 * -1 + 9/11 * -2 = -20/11. The statistic is that after two steps.
    assert float(kept["weight"]) == pytest.approx(-20 / 11)
    assert float(kept["statistic"]) == 2


def test_without_an_average_the_last_weights_are_the_model():
    training = trained(0.0)
    assert training.averaged is None
    assert float(training.model_weights()["weight"]) == -2


def test_an_average_goes_on_where_it_stopped():
    """Weights and count: the next step keeps 3/12."""
    state = trained(0.999).save(2)
    optim = Optim(optimizer="sgd", momentum=0.0, nesterov=False, learning_rate=1.0, power=0, weight_decay=0.0, steps=3)
    training = TrainingState.begin(Number(), optim, CPU)
    training.restore(state)
    training.learner.losses(None, None)["weight"].backward()
    training.step(optim, Progress(2, 3))
    # 1/4 * -20/11 + 3/4 * -3.
    assert float(training.model_weights()["weight"]) == pytest.approx(-5 / 11 - 9 / 4)
