"""A step of a training: the gradient of a batch from its micro-batches, clipping and the update, with plain models."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from expect import same
from torch import Tensor, nn
from torch.amp import GradScaler

from minillava.training.distributed import SINGLE, Team
from minillava.training.step import accumulate, clip, update

OFF = GradScaler("cpu", enabled=False)
SCALE = 1024.0  # a power of two: scaling by it loses nothing


def layer() -> nn.Linear:
    """A layer with one output, always the same one."""
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def batches(sizes: list[int]) -> list[dict[str, Tensor]]:
    """Micro-batches of so many rows out of the same rows in the same order. A row may have several terms."""
    torch.manual_seed(1)
    x, y = torch.randn(sum(sizes), 3), torch.randn(sum(sizes), 1)
    return [{"x": one, "y": other} for one, other in zip(x.split(sizes), y.split(sizes))]


def mean_error(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: (model(batch["x"]) - batch["y"]).square().mean()


def task_of(model: nn.Module, loss: Callable | None = None) -> SimpleNamespace:
    """A Task as far as a step needs one."""
    return SimpleNamespace(model=model, loss=loss or mean_error(model), weight=lambda batch: len(batch["x"]))


def run_with(team: Team = SINGLE) -> SimpleNamespace:
    return SimpleNamespace(team=team, device="cpu")


def rows_of(sizes: list[int]) -> list[list[int]]:
    numbers = iter(range(100))
    return [[next(numbers) for _ in range(size)] for size in sizes]


def at_once(sizes: list[int]) -> tuple[float, list[Tensor]]:
    """The loss of all rows as one batch, and its gradient."""
    model = layer()
    loss = mean_error(model)({name: torch.cat([one[name] for one in batches(sizes)]) for name in ("x", "y")})
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 3, 3], [5, 1, 1, 2]])
def test_micro_batches_have_the_gradient_of_the_whole_batch(sizes):
    model = layer()
    loss = accumulate(task_of(model), batches(sizes), rows_of(sizes), run_with(), nullcontext(), OFF)
    whole, gradient = at_once(sizes)
    for parameter, want in zip(model.parameters(), gradient):
        same(parameter.grad, want, "each micro-batch counts by its weight, so the gradient is that of the whole batch")
    assert isinstance(loss, float), "the loss is a number, not a tensor"
    assert loss == pytest.approx(whole, rel=1e-5), "the loss is the mean over all terms of the whole batch"


def test_weights_are_the_tasks_own():
    """As in a batch of texts, where the terms are tokens with a loss and not rows."""
    model, sizes = layer(), [2, 2]
    task = task_of(model)
    task.weight = lambda batch: 3 if batch["x"] is first else 1
    micro = batches(sizes)
    first = micro[0]["x"]
    loss = accumulate(task, micro, rows_of(sizes), run_with(), nullcontext(), OFF)
    parts = [mean_error(layer())(batch).item() for batch in micro]
    want = 0.75 * parts[0] + 0.25 * parts[1]
    assert loss == pytest.approx(want, rel=1e-5), "a micro-batch's weight is task.weight(batch), not its number of rows"


def test_gradients_of_the_step_before_are_dropped():
    model, sizes = layer(), [2, 3]
    for _ in range(2):
        accumulate(task_of(model), batches(sizes), rows_of(sizes), run_with(), nullcontext(), OFF)
    for parameter, want in zip(model.parameters(), at_once(sizes)[1]):
        same(parameter.grad, want, "a step begins without the gradient of the step before")


def test_a_parameter_that_is_not_used_has_no_gradient():
    model = nn.ModuleDict({"used": layer(), "not used": layer()})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    accumulate(task_of(model, mean_error(model["used"])), batches([2]), rows_of([2]), run_with(), nullcontext(), OFF)
    gone = all(parameter.grad is None for parameter in model["not used"].parameters())
    assert gone, "gradients are set to None: a gradient of 0 would let the optimizer move the parameter"


def test_a_dummy_row_has_no_weight():
    """It is in a micro-batch in which this rank has no rows of its own."""
    model, sizes = layer(), [2, 3]
    micro = batches([*sizes, 1])
    loss = accumulate(task_of(model), micro, [*rows_of(sizes), []], run_with(), nullcontext(), OFF)
    rows = {name: torch.cat([one[name] for one in micro[:2]]) for name in ("x", "y")}
    plain = layer()
    want = mean_error(plain)(rows)
    want.backward()
    assert loss == pytest.approx(want.item(), rel=1e-5), "a micro-batch with an empty share has the weight 0"
    for parameter, other in zip(model.parameters(), plain.parameters()):
        same(parameter.grad, other.grad, "a micro-batch with an empty share adds nothing to the gradient")


def test_each_micro_batch_has_a_backward_pass_of_its_own():
    """So the memory holds the activations of only one."""
    model, sizes, log = layer(), [1, 2, 2], []

    def loss(batch: dict[str, Tensor]) -> Tensor:
        log.append("forward")
        part = mean_error(model)(batch)
        part.register_hook(lambda _: log.append("backward"))
        return part

    accumulate(task_of(model, loss), batches(sizes), rows_of(sizes), run_with(), nullcontext(), OFF)
    assert log == ["forward", "backward"] * 3, "each micro-batch: forward, then backward, before the next one"


@dataclass(frozen=True)
class Pair(Team):
    """One of two ranks: the other has the same rows, so each sum over both is twice this rank's."""

    size: int = 2

    def total(self, number: float) -> float:
        return 2 * number


def test_two_ranks_share_the_batch():
    """DDP gives each rank the mean of both gradients, which here are the same."""
    model, sizes = layer(), [2, 3]
    loss = accumulate(task_of(model), batches(sizes), rows_of(sizes), run_with(Pair()), nullcontext(), OFF)
    whole, gradient = at_once(sizes)
    assert loss == pytest.approx(whole, rel=1e-5), "weights and losses are summed over the ranks by team.total"
    for parameter, want in zip(model.parameters(), gradient):
        same(parameter.grad, want, "ranks average gradients, so each part is multiplied by team.size")


def test_the_forward_pass_is_in_autocast():
    model, inside = layer(), []

    def loss(batch: dict[str, Tensor]) -> Tensor:
        inside.append(torch.is_autocast_enabled("cpu"))
        return mean_error(model)(batch)

    autocast = torch.autocast("cpu", torch.bfloat16)
    accumulate(task_of(model, loss), batches([1, 1]), rows_of([1, 1]), run_with(), autocast, OFF)
    assert inside == [True, True], "the loss of each micro-batch is computed in autocast"
    assert not torch.is_autocast_enabled("cpu"), "autocast ends with the forward pass"


def test_the_scaler_scales_the_gradient_and_not_the_loss():
    model, sizes = layer(), [2, 3]
    scaler = GradScaler("cpu", init_scale=SCALE)
    loss = accumulate(task_of(model), batches(sizes), rows_of(sizes), run_with(), nullcontext(), scaler)
    whole, gradient = at_once(sizes)
    assert loss == pytest.approx(whole, rel=1e-5), "the loss that is returned is not scaled"
    for parameter, want in zip(model.parameters(), gradient):
        same(parameter.grad, SCALE * want, "backward() starts from scaler.scale(loss), so that gradients are scaled")


def with_gradients(*grads: list[float] | None) -> list[nn.Parameter]:
    ones = [nn.Parameter(torch.ones(len(grad or [0]))) for grad in grads]
    for one, grad in zip(ones, grads):
        one.grad = grad and torch.tensor(grad)
    return ones


def sgd(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(parameters, lr=0.5)]


def test_a_long_gradient_is_shortened_as_one_vector():
    ones = with_gradients([3.0, 0.0], [4.0])
    length = clip(sgd(ones), ones, OFF)
    assert isinstance(length, float), "the length is a number, not a tensor"
    assert length == pytest.approx(5), "the length is that of all gradients as one vector, before it is shortened"
    sentence = "all gradients are multiplied by the same factor, longest / length"
    same(ones[0].grad, torch.tensor([0.6, 0.0]), sentence)
    same(ones[1].grad, torch.tensor([0.8]), sentence)


def test_a_short_gradient_stays_as_it_is():
    ones = with_gradients([0.3, 0.0], [0.4])
    assert clip(sgd(ones), ones, OFF) == pytest.approx(0.5), "the length of a short gradient is returned too"
    same(ones[0].grad, torch.tensor([0.3, 0.0]), "a gradient that is not too long is not changed")
    same(ones[1].grad, torch.tensor([0.4]), "a gradient that is not too long is not changed")


def test_the_longest_length_may_be_chosen():
    ones = with_gradients([3.0, 4.0])
    clip(sgd(ones), ones, OFF, longest=2.5)
    same(ones[0].grad, torch.tensor([1.5, 2.0]), "the gradient is shortened to the length longest")


def test_the_sign_of_a_gradient_does_not_matter_for_its_length():
    ones = with_gradients([-3.0], [4.0])
    assert clip(sgd(ones), ones, OFF) == pytest.approx(5), "the length is the root of the sum of squares"


def test_a_parameter_without_a_gradient_has_none_after_clipping():
    ones = with_gradients([3.0, 4.0], None)
    assert clip(sgd(ones), ones, OFF) == pytest.approx(5), "a parameter without a gradient does not count"
    assert ones[1].grad is None, "a parameter without a gradient gets none"


def test_parameters_may_be_a_generator():
    ones = with_gradients([3.0, 4.0])
    clip(sgd(ones), (one for one in ones), OFF)
    same(ones[0].grad, torch.tensor([0.6, 0.8]), "the parameters may come from a generator, which is read once")


def test_a_gradient_that_is_no_number_has_no_length():
    ones = with_gradients([float("nan"), 1.0])
    length = clip(sgd(ones), ones, OFF)
    assert length != length, "the length of a gradient with a NaN is NaN: train() stops there"


def scaled(ones: list[nn.Parameter]) -> GradScaler:
    """A scaler that has scaled the gradients of ``ones``."""
    scaler = GradScaler("cpu", init_scale=SCALE, growth_interval=100)
    scaler.scale(torch.zeros(()))
    for one in ones:
        one.grad *= SCALE
    return scaler


def test_scaled_gradients_are_divided_before_they_are_measured():
    ones = with_gradients([3.0, 0.0], [4.0])
    optimizers = [*sgd(ones[:1]), *sgd(ones[1:])]
    length = clip(optimizers, ones, scaled(ones))
    assert length == pytest.approx(5), "scaler.unscale_ comes before the length, for every optimizer"
    same(ones[1].grad, torch.tensor([0.8]), "scaler.unscale_ comes before the clipping")


def test_every_optimizer_makes_its_step():
    ones = with_gradients([1.0], [2.0])
    update([*sgd(ones[:1]), *sgd(ones[1:])], OFF)
    same(ones[0].detach(), torch.tensor([0.5]), "an optimizer makes one step")
    same(ones[1].detach(), torch.tensor([0.0]), "every optimizer makes one step")


def test_a_step_with_a_scaler_is_the_step_without():
    ones = with_gradients([1.0], [2.0])
    optimizers = [*sgd(ones[:1]), *sgd(ones[1:])]
    scaler = scaled(ones)
    clip(optimizers, ones, scaler, longest=100.0)
    update(optimizers, scaler)
    same(ones[0].detach(), torch.tensor([0.5]), "scaler.step makes the step with the gradient that is not scaled")
    same(ones[1].detach(), torch.tensor([0.0]), "scaler.step makes the step of every optimizer")


def test_a_gradient_too_large_for_float16_makes_no_step_and_the_scale_smaller():
    ones = with_gradients([float("inf")], [2.0])
    optimizers = [*sgd(ones[:1]), *sgd(ones[1:])]
    scaler = scaled(ones)
    clip(optimizers, ones[1:], scaler)
    update(optimizers, scaler)
    same(ones[0].detach(), torch.tensor([1.0]), "scaler.step leaves out a step whose gradient is not finite")
    assert scaler.get_scale() == SCALE / 2, "after all steps scaler.update() makes the scale smaller, once"


def test_a_scaler_is_ready_for_the_next_step():
    ones = with_gradients([1.0], [2.0])
    optimizers = [*sgd(ones[:1]), *sgd(ones[1:])]
    scaler = scaled(ones)
    for _ in range(2):
        clip(optimizers, ones, scaler)
        try:
            update(optimizers, scaler)
        except RuntimeError:
            raise AssertionError("scaler.update() comes once, after the steps of all optimizers") from None
        for one in ones:
            one.grad *= SCALE
