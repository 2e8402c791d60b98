"""Sliced Wasserstein distance and MS-SSIM."""

from collections.abc import Iterable

from gankern.errors import InputError
from gankern.metrics.descriptors import DescriptorCollector
from gankern.metrics.distance import sliced_wasserstein, swd
from gankern.metrics.floor import SWDScore, disjoint_halves, swd_with_floor
from gankern.metrics.pyramid import laplacian_pyramid
from gankern.metrics.structural import ms_ssim, ms_ssim_diversity

__all__ = [
    "METRICS",
    "DescriptorCollector",
    "SWDScore",
    "check_metric_names",
    "disjoint_halves",
    "laplacian_pyramid",
    "ms_ssim",
    "ms_ssim_diversity",
    "sliced_wasserstein",
    "swd",
    "swd_with_floor",
]

METRICS = ("swd", "ms_ssim")


def check_metric_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """The metrics asked for, "swd,ms_ssim" or a list, each once; InputError for none or an unknown one."""
    names = names.split(",") if isinstance(names, str) else names
    names = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        found = f"unknown metric {', '.join(map(repr, unknown))}" if unknown else "no metric named"
        raise InputError(f"metrics: {found}; choose from {', '.join(METRICS)}")
    return names
