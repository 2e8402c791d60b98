"""grid_sample, differentiable twice in the image. `enabled = False` takes torch's own."""

import torch.nn.functional as F
from torch import Tensor

from gankern import ops

enabled = True


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """torch.nn.functional.grid_sample: bilinear, zeros outside, align_corners=False."""
    if enabled:
        return ops.grid_sample(input, grid)
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
