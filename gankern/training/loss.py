"""Losses of StyleGAN2: non-saturating logistic, R1, path length.

Goodfellow et al. 2014 (arXiv:1406.2661), Mescheder et al. 2018 (arXiv:1801.04406), Karras et al. 2020
(arXiv:1912.04958).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern.ops import no_weight_gradients


def generator_loss(fake_logits: Tensor) -> Tensor:
    """mean softplus(−D(G(z))): the non-saturating logistic loss, a scalar."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean softplus(D(fake)) + mean softplus(−D(real)), a scalar."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """‖∂ΣD/∂x‖² of each sample, [N]; the loss is γ/2 times its mean. `real` [N, C, H, W] must require a gradient."""
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(real_logits.sum(), [real], create_graph=True)
    return gradient.square().sum([1, 2, 3])


def path_lengths(img: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """√(mean over layers of ‖∂⟨img, noise⟩/∂w‖²) of each sample, [N]; noise is N(0, 1)/√(H·W), of img's shape."""
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad((img * noise).sum(), [ws], create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
