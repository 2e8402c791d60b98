"""Reals and fakes in one batch: what the discriminator says of each is what it says of them apart."""

import pytest
import torch

from gankern.training.config import resolve
from gankern.training.phases import Phases, apart, build_networks, joined
from gankern.training.progan_phases import ProGANPhases
from gankern.training.progan_phases import build_networks as build_progan

SMALL = {"data": "", "z_dim": 8, "channel_base": 64, "channel_max": 16, "precision": "fp64", "mbstd_group": 4}


def images(seed, n=8):
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(seed, n, c_dim):
    return torch.randn(n, c_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_order(group):
    real, fake = torch.arange(8), torch.arange(8) + 100
    both = joined(real, fake, group)
    for i in range(16 // group):
        compared = both[i :: 16 // group]
        assert len(compared) == group
        assert (compared < 100).all() or (compared >= 100).all()
    assert [t.tolist() for t in apart(both, group)] == [real.tolist(), fake.tolist()]
    # the groups are those of each half alone
    assert both[0 :: 16 // group].tolist() == real[0 :: 8 // group].tolist()


@pytest.mark.parametrize("c_dim", [0, 3])
def test_stylegan2(c_dim):
    torch.manual_seed(0)
    config = resolve(SMALL | {"preset": "stylegan2", "w_dim": 8, "batch": 8}, resolution=16, c_dim=c_dim, identity="")
    phases = Phases(config, *build_networks(config, "cpu"), lambda n: torch.empty(n, c_dim))
    given = images(1), labels(2, 8, c_dim), images(3), labels(4, 8, c_dim)
    real, fake = phases._judge(*given)
    torch.testing.assert_close(real, phases.D(*given[:2]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fake, phases.D(*given[2:]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize(("n", "group"), [(8, 4), (6, 4), (2, 4), (4, 0)])
def test_progan(c_dim, n, group):
    """Also where a lane is smaller than a group, or no multiple of one."""
    torch.manual_seed(0)
    options = SMALL | {"preset": "progan", "mbstd_group": group}
    config = resolve(options, resolution=16, c_dim=c_dim, identity="")
    phases = ProGANPhases(config, *build_progan(config, "cpu"), lambda m: torch.empty(m, c_dim))
    phases.go_to(config.schedule().place(0.0))
    if n % (min(group, n) or 1):
        with pytest.raises(ValueError, match=r"group_size|multiple|divi"):
            phases._judge(images(1, n))
        return
    found = phases._judge_both(images(1, n), images(3, n), together=True)
    for (scores, logits), x in zip(found, (images(1, n), images(3, n)), strict=True):
        want_scores, want_logits = phases._judge(x)
        torch.testing.assert_close(scores, want_scores, rtol=1e-12, atol=1e-12)
        assert (logits is None) == (c_dim == 0)
        if c_dim:
            torch.testing.assert_close(logits, want_logits, rtol=1e-12, atol=1e-12)
