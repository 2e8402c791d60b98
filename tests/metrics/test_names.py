"""The metrics' names, as a command line gives them."""

import pytest

from gankern.errors import InputError
from gankern.metrics import METRICS, check_metric_names


def test_known_names():
    assert METRICS == ("swd", "ms_ssim")
    assert check_metric_names("swd") == ("swd",)
    assert check_metric_names("ms_ssim, swd,swd") == ("ms_ssim", "swd")
    assert check_metric_names(list(METRICS)) == METRICS


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("fid", "unknown metric 'fid'; choose from swd, ms_ssim"),
        (["swd", "FID", "kid"], "unknown metric 'FID', 'kid'"),
        ("", "no metric named"),
        ([], "no metric named"),
    ],
)
def test_wrong_names(names, text):
    with pytest.raises(InputError, match=text):
        check_metric_names(names)
