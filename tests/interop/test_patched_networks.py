"""Stand-in code bases on patched operators: the golden outputs, and gradients of all four losses.

Their own operators raise ImportError, so that nothing but the patch makes them run.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gankern.interop import patch_stylegan_ops, unpatch_stylegan_ops

STAND_INS = Path(__file__).parent / "stand_ins"
KINDS = {"ada": ("torch_utils.ops", "training.networks"), "rosinality": ("op", "model")}
CASES = [
    ("ada", "stylegan2_32", {}),
    ("ada", "stylegan2_32", {"grouped": True}),
    ("ada", "stylegan2_cond_16", {}),
    ("rosinality", "stylegan2_32", {}),
]


class Case:
    """A code base's networks with a golden file's weights."""

    def __init__(self, networks, arrays, config, options):
        self.networks, self.arrays, self.config, self.options = networks, arrays, config, options
        self.G, self.D = self.weights("G/", "w_avg"), self.weights("D/")
        self.z, self.c, self.x = (torch.from_numpy(arrays[k].copy()) for k in ("z", "c", "x"))

    def weights(self, prefix, *more):
        constant = ("resample_filter", "noise_const", *more)
        made = {k[2:]: torch.from_numpy(v.copy()) for k, v in self.arrays.items() if k.startswith(prefix)}
        return {k: v.requires_grad_(not k.endswith(constant)) for k, v in made.items()}

    def ws(self):
        return self.networks.generator_ws(self.G, self.z, self.c)

    def synthesis(self, ws):
        return self.networks.synthesis(self.G, ws, **self.options)

    def logits(self, x):
        return self.networks.discriminator(self.D, x, self.c)

    def close(self, value, name, rtol=2e-4):
        expected = self.arrays[name]
        scale = max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=rtol * scale, err_msg=name)

    def gradients_close(self, weights, loss, prefix):
        leaves = {k: v for k, v in weights.items() if v.requires_grad}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        assert {f"{prefix}/{k}" for k in leaves} == {k for k in self.arrays if k.startswith(f"{prefix}/")}
        for (name, weight), g in zip(leaves.items(), found, strict=True):
            self.close(torch.zeros_like(weight) if g is None else g, f"{prefix}/{name}")


@pytest.fixture(scope="module", params=CASES, ids=lambda p: "-".join([*p[:2], *p[2]]))
def case(request, golden, golden_json):
    kind, name, options = request.param
    package, networks = KINDS[kind]
    before = set(sys.modules)
    sys.path.insert(0, str(STAND_INS / kind))
    try:
        with pytest.raises(ImportError, match="needs a compiler"):
            importlib.import_module(networks)
        for module in set(sys.modules) - before:
            del sys.modules[module]
        with patch_stylegan_ops(package):
            made = importlib.import_module(networks)
        yield Case(made, golden(name), golden_json(name), options)
    finally:
        unpatch_stylegan_ops()
        sys.path.remove(str(STAND_INS / kind))
        for module in set(sys.modules) - before:
            if module.split(".")[0] in ("torch_utils", "training", "op", "model"):
                del sys.modules[module]


def test_outputs(case):
    case.close(case.ws(), "ws")
    case.close(case.synthesis(case.ws()), "img_const")
    case.close(case.logits(case.x), "logits")


def test_no_noise(case):
    if case.networks.__name__ == "model":
        pytest.skip("this stand-in always adds noise")
    case.close(case.networks.synthesis(case.G, case.ws(), noise=False, **case.options), "img_none")


def test_generator_main(case):
    loss = F.softplus(-case.logits(case.synthesis(case.ws()))).mean()
    case.close(loss, "loss_Gmain")
    case.gradients_close(case.G, loss, "grad_Gmain")


def test_discriminator_main(case):
    fake = case.synthesis(case.ws()).detach()
    loss = F.softplus(case.logits(fake)).mean() + F.softplus(-case.logits(case.x)).mean()
    case.close(loss, "loss_Dmain")
    case.gradients_close(case.D, loss, "grad_Dmain")


def test_r1(case):
    x = case.x.clone().requires_grad_()
    penalty = case.networks.r1_gradient(case.logits(x), x).square().sum([1, 2, 3])
    case.close(penalty, "r1")
    case.close(penalty.mean() / 2, "loss_Dr1_gamma1")
    case.gradients_close(case.D, penalty.mean() / 2, "grad_Dr1")


def test_path_length(case):
    ws = case.ws()
    img = case.synthesis(ws)
    noise = torch.from_numpy(case.arrays["pl_noise"].copy())
    (gradient,) = torch.autograd.grad((img * noise).sum(), [ws], create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()
    case.close(lengths, "pl_lengths")
    loss = (lengths - case.config["pl_mean"]).square().mean()
    case.close(loss, "loss_Gpl_mean0.1")
    case.gradients_close(case.G, loss, "grad_Gpl")
