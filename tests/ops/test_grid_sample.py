"""grid_sample: parity with torch's own, first order in both arguments, second order in x."""

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, check_gradients, rand

from gankern.ops import grid_sample


def operands(n=2):
    return rand(n, 3, 5, 4, grad=True), (rand(n, 3, 6, 2, seed=1) * 0.8).requires_grad_()


def test_parity():
    x, grid = operands()
    y, want = grid_sample(x, grid), F.grid_sample(x, grid, align_corners=False)
    assert_close(y, want)
    dy = rand(*y.shape, seed=2)
    for got, truth in zip(torch.autograd.grad(y, [x, grid], dy), torch.autograd.grad(want, [x, grid], dy), strict=True):
        assert_close(got, truth)


def test_no_images():
    assert grid_sample(*operands(0)).shape == (0, 3, 3, 6)


def test_second_order_in_x():
    x, grid = operands()
    check_gradients(lambda x: grid_sample(x, grid.detach()), x)


def test_the_gradient_of_x_depends_on_the_grid():
    x, grid = operands()
    dy = rand(2, 3, 3, 6, seed=2, grad=True)

    def gradient(grid, dy):
        return torch.autograd.grad(grid_sample(x, grid), x, dy, create_graph=True)[0]

    assert torch.autograd.gradcheck(gradient, (grid, dy), fast_mode=True)


def test_second_order_in_the_grid_is_refused():
    x, grid = operands()
    (dgrid,) = torch.autograd.grad(grid_sample(x, grid).square().sum(), grid, create_graph=True)
    with pytest.raises(NotImplementedError, match="the gradient of the grid can't be differentiated again"):
        torch.autograd.grad(dgrid.sum(), grid)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (torch.zeros(2, 3, 4, 3), r"grid has shape \(2, 3, 4, 3\), expected \[N, h, w, 2\]"),
        (torch.zeros(1, 3, 4, 2), r"grid has shape \(1, 3, 4, 2\)"),
        (torch.zeros(2, 3, 4, 2).double(), r"grid is torch.float64, expected x's torch.float32"),
    ],
)
def test_bad_arguments(grid, message):
    with pytest.raises(ValueError, match=message):
        grid_sample(torch.zeros(2, 3, 5, 5), grid)
