"""StyleGAN2 against the original implementation: outputs, and the gradients of all four training losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gankern.interop import discriminator_from_state_dict, generator_from_state_dict
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.training import loss as losses

NAMES = ("stylegan2_32", "stylegan2_cond_16")


class Case:
    """A golden file with its networks; `used` collects the arrays that a test has compared or fed."""

    def __init__(self, name, arrays, config):
        self.arrays, self.config, self.used = arrays, config, set()
        part = lambda p: {k[2:]: torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(p)}  # noqa: E731
        self.G = generator_from_state_dict(part("G/")).eval()
        self.D = discriminator_from_state_dict(part("D/")).eval()
        self.z, self.c, self.x = (torch.from_numpy(arrays[k].copy()) for k in ("z", "c", "x"))

    def close(self, value, name, rtol=2e-4):
        expected = self.arrays[name]
        scale = max(np.abs(expected).max(), 1e-6)
        np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=rtol * scale, err_msg=name)

    def gradients_close(self, network, prefix):
        names = [k for k in self.arrays if k.startswith(prefix + "/")]
        assert names
        parameters = dict(network.named_parameters())
        for name in names:
            p = parameters[name[len(prefix) + 1 :]]
            self.close(torch.zeros_like(p) if p.grad is None else p.grad, name)
        assert {n[len(prefix) + 1 :] for n in names} == set(parameters)
        network.zero_grad()


@pytest.fixture(scope="module", params=NAMES)
def case(request, golden, golden_json):
    return Case(request.param, golden(request.param), golden_json(request.param))


def test_every_dimension_is_inferred(case):
    g, d = dict(case.config["generator"]), dict(case.config["discriminator"])
    g["num_mapping_layers"] = g.pop("mapping_kwargs")["num_layers"]
    # the stored channels reach channel_max or follow channel_base, so both come back as they were or equivalent
    same = Generator(**g)
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in case.G.state_dict().items()}
    same = Discriminator(**d)
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in case.D.state_dict().items()}


def test_outputs(case):
    G, D, cfg = case.G, case.D, case.config
    case.close(G.mapping(case.z, case.c), "ws")
    psi, cutoff = cfg["truncation_psi"], cfg["truncation_cutoff"]
    case.close(G.mapping(case.z, case.c, truncation_psi=psi, truncation_cutoff=cutoff), "ws_psi")
    case.close(G(case.z, case.c, noise_mode="const"), "img_const")
    case.close(G(case.z, case.c, noise_mode="none"), "img_none")
    case.close(G(case.z, case.c, psi, cutoff, "const"), "img_psi_const")
    case.close(D(case.x, case.c), "logits")


def test_generator_main(case):
    loss = losses.generator_loss(case.D(case.G(case.z, case.c, noise_mode="const"), case.c))
    case.close(loss, "loss_Gmain")
    loss.backward()
    case.D.zero_grad()
    case.gradients_close(case.G, "grad_Gmain")


def test_discriminator_main(case):
    with torch.no_grad():
        fake = case.G(case.z, case.c, noise_mode="const")
    loss = losses.discriminator_loss(case.D(case.x, case.c), case.D(fake, case.c))
    case.close(loss, "loss_Dmain")
    loss.backward()
    case.gradients_close(case.D, "grad_Dmain")


def test_r1(case):
    x = case.x.clone().requires_grad_()
    penalty = losses.r1_penalty(case.D(x, case.c), x)
    case.close(penalty, "r1")
    loss = (penalty / 2).mean()
    case.close(loss, "loss_Dr1_gamma1")
    loss.backward()
    case.gradients_close(case.D, "grad_Dr1")


def test_path_length(case):
    ws = case.G.mapping(case.z, case.c)
    img = case.G.synthesis(ws, noise_mode="const")
    lengths = losses.path_lengths(img, ws, torch.from_numpy(case.arrays["pl_noise"].copy()))
    case.close(lengths, "pl_lengths")
    loss = (lengths - case.config["pl_mean"]).square().mean()
    case.close(loss, "loss_Gpl_mean0.1")
    loss.backward()
    case.gradients_close(case.G, "grad_Gpl")


def test_every_array_is_covered(case):
    """The names that the tests above compare or feed are all that the file holds."""
    known = {"z", "c", "x", "ws", "ws_psi", "img_const", "img_none", "img_psi_const", "logits", "r1", "pl_noise"}
    known |= {"pl_lengths", "loss_Gmain", "loss_Dmain", "loss_Dr1_gamma1", "loss_Gpl_mean0.1"}
    prefixes = ("G/", "D/", "grad_Gmain/", "grad_Dmain/", "grad_Dr1/", "grad_Gpl/")
    assert not [k for k in case.arrays if k not in known and not k.startswith(prefixes)]
    assert F.softplus(torch.zeros([])).item() == pytest.approx(np.log(2))
