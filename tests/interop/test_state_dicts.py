"""Networks from state dicts under the public names: every dimension from the shapes, and what doesn't fit."""

import pytest
import torch

from gankern.errors import InputError
from gankern.interop import discriminator_from_state_dict, generator_from_state_dict
from gankern.models.stylegan2 import ARCHITECTURES, Discriminator, Generator

CHANNELS = {
    "all at the cap": (4096, 8),
    "some": (256, 32),
    "none": (128, 512),
    "odd base": (100, 512),
    "odd cap": (100, 9),
}
SMALL = {"img_resolution": 16, "channel_base": 128, "channel_max": 16, "num_mapping_layers": 2}


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip(architecture, channels, c_dim):
    """The same function comes back."""
    base, top = CHANNELS[channels]
    shared = {"c_dim": c_dim, "img_resolution": 16, "channel_base": base, "channel_max": top, "img_channels": 2}
    shared |= {"architecture": architecture, "num_mapping_layers": 3}
    G, D = Generator(8, w_dim=12, **shared), Discriminator(**shared)
    G2, D2 = generator_from_state_dict(G.state_dict()), discriminator_from_state_dict(D.state_dict())
    z, c = torch.randn(4, 8), torch.eye(3)[[0, 1, 2, 0]][:, :c_dim]
    images = G(z, c, noise_mode="const")
    assert images.equal(G2(z, c, noise_mode="const"))
    assert D(images, c).equal(D2(images, c))
    same = {"c_dim", "img_resolution", "img_channels", "num_mapping_layers", "architecture"}
    assert all(G.config[k] == G2.config[k] for k in same | {"z_dim", "w_dim"})
    assert all(D.config[k] == D2.config[k] for k in same - {"num_mapping_layers"} | {"cmap_dim", "mbstd_num_channels"})


def test_compute_type_and_group():
    G = generator_from_state_dict(Generator(8, w_dim=8, **SMALL).state_dict(), compute_dtype=torch.bfloat16)
    assert G.compute_dtype == torch.bfloat16
    D = discriminator_from_state_dict(Discriminator(**SMALL).state_dict(), mbstd_group_size=2)
    assert D(torch.zeros(6, 3, 16, 16)).shape == (6, 1)


def test_no_minibatch_stddev():
    D = Discriminator(**SMALL, mbstd_num_channels=0)
    assert discriminator_from_state_dict(D.state_dict()).config["mbstd_num_channels"] == 0


NETWORKS = {
    "generator": (lambda: Generator(8, 3, 12, **SMALL), generator_from_state_dict),
    "resnet generator": (lambda: Generator(8, 0, 12, architecture="resnet", **SMALL), generator_from_state_dict),
    "discriminator": (lambda: Discriminator(3, **SMALL), discriminator_from_state_dict),
    "skip discriminator": (lambda: Discriminator(0, architecture="skip", **SMALL), discriminator_from_state_dict),
}
WRONG = {
    "missing": lambda sd, name: sd.pop(name),
    "renamed": lambda sd, name: sd.update({name + "_": sd.pop(name)}),
    "a number": lambda sd, name: sd.update({name: torch.zeros([])}),
    "empty": lambda sd, name: sd.update({name: sd[name][None][:0]}),
    "too long": lambda sd, name: sd.update({name: torch.cat([t := torch.atleast_1d(sd[name]), t[:1]])}),
    "narrower": lambda sd, name: sd.update({name: sd[name][:, :-2] if sd[name].ndim > 1 else sd[name][None]}),
    "one dimension more": lambda sd, name: sd.update({name: sd[name][None]}),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("network", NETWORKS)
def test_what_does_not_fit(network, wrong):
    """Any entry that is missing, renamed or of another shape is refused."""
    make, load = NETWORKS[network]
    whole = make().state_dict()
    for name in whole:
        sd = dict(whole)
        WRONG[wrong](sd, name)
        if wrong == "a number" and name.endswith("noise_strength"):
            continue  # it is one
        if wrong == "narrower" and name in ("mapping.fc0.weight", "mapping.embed.weight", "b16.fromrgb.weight"):
            continue  # of a smaller z, fewer classes, grey images
        with pytest.raises(InputError):
            load(sd)


def test_each_other():
    with pytest.raises(InputError, match="public names"):
        generator_from_state_dict(Discriminator(**SMALL).state_dict())
    with pytest.raises(InputError, match="public names"):
        discriminator_from_state_dict(Generator(8, w_dim=8, **SMALL).state_dict())
    with pytest.raises(InputError, match="public names"):
        generator_from_state_dict({})


def test_an_extra_entry():
    sd = Generator(8, w_dim=8, **SMALL).state_dict() | {"optimizer.step": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unknown optimizer\.step"):
        generator_from_state_dict(sd)
