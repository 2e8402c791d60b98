"""Losses of ProGAN: WGAN-GP with a drift penalty, and the auxiliary classifier of labels.

    critic     mean(D(fake) − D(real)) + drift · mean(D(real)²) + λ · mean(((‖∂ΣD(mixed)/∂mixed‖ − γ) / γ)²)
    generator  −mean D(fake)

Gulrajani et al. 2017 (arXiv:1704.00028), Karras et al. 2018 (arXiv:1710.10196), Odena et al. 2017 (arXiv:1610.09585).
The logistic loss and R1 are in loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern.ops import no_weight_gradients


def generator_loss(fake_scores: Tensor) -> Tensor:
    """−mean D(fake), a scalar."""
    return -fake_scores.mean()


def critic_loss(real_scores: Tensor, fake_scores: Tensor, drift: float) -> Tensor:
    """mean(D(fake) − D(real)) + drift · mean(D(real)²), a scalar."""
    return (fake_scores - real_scores).mean() + drift * real_scores.square().mean()


def mix(real: Tensor, fake: Tensor, factor: Tensor) -> Tensor:
    """real + (fake − real) · factor, a leaf that requires a gradient; factor [N, 1, 1, 1] lies in [0, 1)."""
    return (real + (fake - real) * factor).detach().requires_grad_()


def gradient_norms(scores: Tensor, img: Tensor) -> Tensor:
    """‖∂ΣD/∂x‖ of each sample, [N]. The sum's gradient: minibatch stddev makes each score depend on all samples."""
    with no_weight_gradients():
        (gradient,) = torch.autograd.grad(scores.sum(), [img], create_graph=True)
    return gradient.square().sum([1, 2, 3]).sqrt()


def gradient_penalty(norms: Tensor, target: float) -> Tensor:
    """((‖∂ΣD/∂x‖ − γ) / γ)² of each sample, [N]."""
    return ((norms - target) / target).square()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits [N, K] against labels [N, K], one-hot or probabilities; a scalar."""
    return -(labels * F.log_softmax(logits, 1)).sum(1).mean()
