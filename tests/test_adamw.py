"""AdamW by hand against torch.optim.AdamW, and each of its properties by itself."""

import pytest
import torch
from expect import same
from torch import Tensor, nn

from lessons.adamw import AdamW

SHAPES = [(3, 4), (5,), ()]
SETTINGS = {
    "defaults": {},
    "a large rate": {"lr": 0.3},
    "other betas": {"lr": 0.01, "betas": (0.5, 0.8)},
    "no memory of the gradients": {"lr": 0.01, "betas": (0.0, 0.9)},
    "much weight decay": {"lr": 0.01, "weight_decay": 0.7},
    "no weight decay": {"lr": 0.01, "weight_decay": 0.0},
    "a large epsilon": {"lr": 0.01, "eps": 0.1},
}


def parameters(scale: float = 1.0) -> list[nn.Parameter]:
    """Three parameters of different shapes, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(scale * torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    """Gradients of very different sizes, with a mean that is not 0."""
    generator = torch.Generator().manual_seed(100 + step)
    return [10.0**place * (0.3 + torch.randn(shape, generator=generator)) for place, shape in enumerate(SHAPES, -2)]


def give(ones: list[nn.Parameter], grads: list[Tensor]) -> None:
    for one, grad in zip(ones, grads):
        one.grad = grad.clone()


def test_a_new_optimizer_changes_nothing_and_has_no_moments():
    own = parameters()
    optimizer = AdamW((parameter for parameter in own), lr=0.3)
    for one, before in zip(own, parameters()):
        same(one, before, "making the optimizer changes no parameter")
    assert optimizer.steps == 0, "no step has been taken"
    for moments in (optimizer.m1, optimizer.m2):
        assert len(moments) == len(own), "each parameter has a first and a second moment"
        for moment, parameter in zip(moments, own):
            same(moment, torch.zeros_like(parameter), "a moment starts at 0, in its parameter's shape", 0, 0)
    assert len(list(optimizer.parameters)) == len(list(optimizer.parameters)) == 3, "a generator is kept as a list"


def test_the_two_moments_of_a_parameter_are_two_tensors():
    optimizer = AdamW(parameters())
    places = {moment.data_ptr() for moment in (*optimizer.m1, *optimizer.m2)}
    assert len(places) == 6, "each parameter has two moments for itself: they must not be the same tensor"


def test_the_arguments_are_kept_by_their_names():
    optimizer = AdamW(parameters(), lr=0.1, betas=(0.2, 0.3), eps=0.4, weight_decay=0.5)
    assert optimizer.lr == 0.1, "lr is kept as self.lr, so that a schedule can change it"
    assert tuple(optimizer.betas) == (0.2, 0.3), "betas are kept as self.betas"
    assert optimizer.eps == 0.4, "eps is kept as self.eps"
    assert optimizer.weight_decay == 0.5, "weight_decay is kept as self.weight_decay"


def test_zero_grad_drops_the_gradients_of_the_step_before():
    own = parameters()
    give(own, gradients(0))
    AdamW(own).zero_grad()
    for one, want in zip(own, gradients(1)):
        (one * want).sum().backward()
        same(one.grad, want, "after zero_grad() a backward pass gives its own gradient only")


def test_parameters_change_in_place_and_gradients_do_not():
    own = parameters()
    optimizer = AdamW(own, lr=0.1, weight_decay=0.0)
    give(own, gradients(0))
    places = [one.data_ptr() for one in own]
    for _ in range(2):
        optimizer.step()
    assert [one.data_ptr() for one in own] == places, "a step changes the model's own tensors, in place"
    for one, before, grad in zip(own, parameters(), gradients(0)):
        assert not torch.equal(one, before), "a step changes every parameter that has a gradient, in place"
        same(one.grad, grad, "a step leaves the gradient as it is", 0, 0)


def test_the_first_step_moves_every_number_by_the_rate():
    own = parameters()
    optimizer = AdamW(own, lr=0.01, eps=0.0, weight_decay=0.0)
    give(own, gradients(0))
    optimizer.step()
    for one, before, grad in zip(own, parameters(), gradients(0)):
        sentence = "by the bias correction the first step is lr against the gradient's sign, however large it is"
        same((one - before).detach(), -0.01 * grad.sign(), sentence, 1e-3, 1e-6)


def test_equal_gradients_give_equal_steps():
    own = parameters()
    optimizer = AdamW(own, lr=0.01, eps=0.0, weight_decay=0.0)
    for step in range(1, 6):
        before = [one.detach().clone() for one in own]
        give(own, gradients(0))
        optimizer.step()
        for one, old, grad in zip(own, before, gradients(0)):
            sentence = f"with the same gradient each time, step {step} is lr too: t in the bias correction counts steps"
            same((one - old).detach(), -0.01 * grad.sign(), sentence, 1e-3, 1e-6)


def test_a_number_moves_slowly_where_gradients_change_their_sign():
    [number] = own = [nn.Parameter(torch.zeros(1))]
    optimizer = AdamW(own, lr=0.01, weight_decay=0.0)
    for step in range(50):
        give(own, [torch.tensor([1.0 if step % 2 else -1.0])])
        optimizer.step()
    assert abs(number.item()) < 0.02, "the first moment is a mean: gradients that change their sign cancel"


def test_weight_decay_is_not_a_part_of_the_gradient():
    own = parameters()
    optimizer = AdamW(own, lr=0.1, weight_decay=0.5)
    give(own, [torch.zeros(shape) for shape in SHAPES])
    optimizer.step()
    for one, before in zip(own, parameters()):
        sentence = "where the gradient is 0, a step makes each number smaller by lr * weight_decay of it"
        same(one.detach(), before.detach() * (1 - 0.1 * 0.5), sentence)


def test_epsilon_is_added_after_the_root():
    [number] = own = [nn.Parameter(torch.zeros(1))]
    give(own, [torch.tensor([1e-4])])
    AdamW(own, lr=1.0, eps=1e-4, weight_decay=0.0).step()
    same(number.detach(), torch.tensor([-0.5]), "eps is added to the root of the second moment, not under it", 1e-3)


def test_a_parameter_without_a_gradient_stays_as_it_is():
    own = parameters()
    optimizer = AdamW(own, lr=0.1, weight_decay=0.5)
    give(own, gradients(0))
    own[1].grad = None
    optimizer.step()
    same(own[1].detach(), parameters()[1].detach(), "a parameter without a gradient does not even decay")
    assert own[2] != parameters()[2], "the parameters after one without a gradient move"


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_are_those_of_torch(settings):
    own, theirs = parameters(), parameters()
    ours, reference = AdamW(own, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(8):
        for ones in (own, theirs):
            give(ones, gradients(step))
        ours.step()
        reference.step()
        for one, other in zip(own, theirs):
            same(one.detach(), other.detach(), f"step {step + 1} is that of torch.optim.AdamW", 1e-5, 1e-6)


def test_the_rate_may_change_between_steps():
    own, theirs = parameters(), parameters()
    ours, reference = AdamW(own, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step, rate in enumerate((0.1, 0.02, 0.3)):
        for ones in (own, theirs):
            give(ones, gradients(step))
        ours.lr = reference.param_groups[0]["lr"] = rate
        ours.step()
        reference.step()
        for one, other in zip(own, theirs):
            same(one.detach(), other.detach(), "each step takes self.lr as it is then", 1e-5, 1e-6)


def test_a_line_is_fitted():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, generator=generator)
    layer = nn.Linear(1, 1)
    optimizer = AdamW(layer.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - (3 * x - 2)).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3, "200 steps fit a line through 64 points"
