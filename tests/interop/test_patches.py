"""patch_stylegan_ops: whose modules come, in which order, what is refused, and that undo leaves nothing behind."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gankern.errors import InputError
from gankern.interop import patch_stylegan_ops, unpatch_stylegan_ops

STAND_INS = Path(__file__).parent / "stand_ins"
ADA = ("bias_act", "conv2d_gradfix", "conv2d_resample", "filtered_lrelu", "fma", "grid_sample_gradfix", "upfirdn2d")


@pytest.fixture(autouse=True)
def clean():
    """sys.path, sys.modules and sys.meta_path as they were."""
    path, modules, finders = list(sys.path), set(sys.modules), list(sys.meta_path)
    yield
    unpatch_stylegan_ops()
    assert sys.meta_path == finders
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("gankern", "torch.", "numpy")):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def tree(tmp_path):
    """tree("a/b.py", ...) -> a code base of these files at the front of sys.path; each tells its name as `here`."""

    def make(*files, init=True):
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("here = __name__\n")
            for parent in path.relative_to(tmp_path).parents:
                if init and str(parent) != ".":
                    (tmp_path / parent / "__init__.py").touch()
        sys.path.insert(0, str(tmp_path))
        importlib.invalidate_caches()
        return tmp_path

    return make


def ours(module):
    return "gankern" in importlib.import_module(module).__file__


def test_one_line_in_a_fresh_process():
    """As a user has it: a script that patches, then imports."""
    code = """
        from gankern.interop import patch_stylegan_ops
        patch_stylegan_ops()
        import torch
        from training import networks
        from torch_utils.ops import bias_act
        assert bias_act.bias_act.__module__ == "torch_utils.ops.bias_act" and bias_act._init()
        print(tuple(networks.minibatch_std(torch.randn(4, 3, 8, 8)).shape))
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(STAND_INS / "ada"), str(root)])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(4, 4, 8, 8)"


def test_parents_stay_the_code_bases_own(tree):
    root = tree("torch_utils/ops/bias_act.py", "torch_utils/custom_ops.py")
    (root / "torch_utils" / "__init__.py").write_text("raised = 1\n")
    patch = patch_stylegan_ops()
    assert not {"torch_utils", "torch_utils.ops"} & set(sys.modules)
    assert set(patch.modules) == {f"torch_utils.ops.{name}" for name in ADA}
    package = importlib.import_module("torch_utils")
    assert package.raised == 1
    assert all(ours(f"torch_utils.ops.{name}") for name in ADA)
    assert importlib.import_module("torch_utils.custom_ops").here == "torch_utils.custom_ops"


def test_undo(tree):
    tree("torch_utils/ops/bias_act.py")
    patch = patch_stylegan_ops()
    kept = importlib.import_module("torch_utils.ops.bias_act").bias_act
    parent = sys.modules["torch_utils.ops"]
    assert parent.bias_act.bias_act is kept
    patch.undo()
    assert not hasattr(parent, "bias_act")
    assert importlib.import_module("torch_utils.ops.bias_act").here == "torch_utils.ops.bias_act"
    patch.undo()
    assert parent.bias_act.here
    assert kept(torch.ones(1)).item() == 1  # who holds a function keeps it


def test_block_undoes_and_unpatch_undoes_all(tree):
    tree("a/torch_utils/ops/bias_act.py", "op/fused_act.py")
    with patch_stylegan_ops("a.torch_utils.ops"):
        assert ours("a.torch_utils.ops.bias_act")
    assert not ours("a.torch_utils.ops.bias_act")
    del sys.modules["a.torch_utils.ops.bias_act"]
    patch_stylegan_ops("a.torch_utils.ops", "op")
    assert ours("a.torch_utils.ops.bias_act")
    assert ours("op")
    unpatch_stylegan_ops()
    assert not ours("a.torch_utils.ops.bias_act")
    assert not ours("op.fused_act")


def test_twice_is_once(tree):
    tree("torch_utils/ops/bias_act.py", "op/fused_act.py")
    patch_stylegan_ops("torch_utils.ops", "op")
    importlib.import_module("op.fused_act")
    with patch_stylegan_ops("torch_utils.ops") as second, patch_stylegan_ops("op"):
        assert second.modules == ()
    assert ours("torch_utils.ops.bias_act")
    with pytest.raises(InputError, match=r"torch_utils\.ops is patched already, with other style= or leave="):
        patch_stylegan_ops(leave=("bias_act",))


def test_imported_before(tree):
    tree("torch_utils/ops/bias_act.py")
    importlib.import_module("torch_utils.ops")
    patch_stylegan_ops().undo()
    importlib.import_module("torch_utils.ops.bias_act")
    with pytest.raises(InputError, match=r"torch_utils\.ops\.bias_act is imported already: call patch_stylegan_ops be"):
        patch_stylegan_ops()


@pytest.mark.parametrize("init", [True, False], ids=["packages", "namespaces"])
def test_what_is_not_covered(tree, init):
    tree("x/torch_utils/ops/hash_grid.py", "x/torch_utils/ops/roi/__init__.py", "x/torch_utils/ops/fma.py", init=init)
    finders = list(sys.meta_path)
    with pytest.raises(InputError, match=r"x\.torch_utils\.ops holds hash_grid, roi, which .* leave=\('hash_grid', 'r"):
        patch_stylegan_ops("x.torch_utils.ops")
    assert sys.meta_path == finders
    patch_stylegan_ops("x.torch_utils.ops", leave=["hash_grid", "roi", "fma"])
    assert importlib.import_module("x.torch_utils.ops.hash_grid").here
    assert not ours("x.torch_utils.ops.fma")
    assert ours("x.torch_utils.ops.bias_act")
    assert "x.torch_utils.ops.roi" not in sys.modules  # nothing of theirs ran


def test_a_package_of_ours_keeps_their_other_modules(tree):
    tree("models/stylegan2/op/extra.py", "models/stylegan2/op/upfirdn2d.py")
    with pytest.raises(InputError, match=r"models\.stylegan2\.op holds extra"):
        patch_stylegan_ops("models.stylegan2.op")
    patch = patch_stylegan_ops("models.stylegan2.op", leave=("extra",))
    op = importlib.import_module("models.stylegan2.op")
    from_module = importlib.import_module("models.stylegan2.op.upfirdn2d").upfirdn2d
    assert op.upfirdn2d is from_module
    assert op.FusedLeakyReLU.__module__ == "models.stylegan2.op.fused_act"
    assert importlib.import_module("models.stylegan2.op.extra").here
    patch.undo()
    assert not any(name.startswith("models.stylegan2.op") for name in sys.modules)
    assert not hasattr(sys.modules["models.stylegan2"], "op")


def test_no_folder_is_needed_where_the_package_is_ours():
    with patch_stylegan_ops("op"):
        assert callable(importlib.import_module("op").upfirdn2d)
    assert "op" not in sys.modules


def test_basicsr_names(tree):
    tree("basicsr/ops/fused_act/fused_act.py", "basicsr/ops/upfirdn2d/upfirdn2d.py", "basicsr/ops/dcn/deform_conv.py")
    patch_stylegan_ops("basicsr.ops")
    fused, fir = (importlib.import_module(f"basicsr.ops.{name}") for name in ("fused_act", "upfirdn2d"))
    assert fused.FusedLeakyReLU is importlib.import_module("basicsr.ops.fused_act.fused_act").FusedLeakyReLU
    assert fir.upfirdn2d is importlib.import_module("basicsr.ops.upfirdn2d.upfirdn2d").upfirdn2d
    assert importlib.import_module("basicsr.ops.dcn.deform_conv").here
    layer = fused.FusedLeakyReLU(3, 0.1, 2.0)
    assert layer.state_dict().keys() == {"bias"}
    assert layer(torch.full((1, 3, 1, 1), -1.0)).flatten().tolist() == pytest.approx([-0.2] * 3)


@pytest.mark.parametrize("compiled", [False, True])
def test_mmcv_names(tree, compiled):
    """Where mmcv's compiled operators are missing its package couldn't be imported, so that is ours too."""
    root = tree("mmcv/ops/upfirdn2d.py", "mmcv/ops/roi_align.py")
    (root / "mmcv" / "ops" / "__init__.py").write_text("from . import roi_align\n")
    if compiled:
        (root / "mmcv" / "_ext.py").touch()
    patch_stylegan_ops(style="mmcv")
    package = importlib.import_module("mmcv.ops")
    assert hasattr(package, "roi_align") == compiled
    assert importlib.import_module("mmcv.ops.roi_align").here
    for module, name in (("fused_bias_leakyrelu", "FusedBiasLeakyReLU"), ("upfirdn2d", "upfirdn2d")):
        assert hasattr(importlib.import_module(f"mmcv.ops.{module}"), name)
        assert compiled or hasattr(package, name)
    for module in ("bias_act", "conv2d_gradfix", "filtered_lrelu"):
        assert ours(f"mmcv.ops.{module}")


def test_a_name_of_the_family_that_a_style_lacks(tree):
    tree("mmcv/ops/fma.py", "mmcv/_ext.py")
    with pytest.raises(InputError, match=r"mmcv\.ops holds fma, which gankern doesn't provide in style 'mmcv'"):
        patch_stylegan_ops("mmcv.ops")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["nothing.torch_utils.ops"], {}, r"package 'nothing\.torch_utils\.ops' isn't found: sys\.path must hold"),
        (["nothing.op"], {}, r"package 'nothing\.op' isn't found"),
        (["basicsr.ops"], {}, r"package 'basicsr\.ops' isn't found"),
        (["mmcv.ops"], {}, r"package 'mmcv\.ops' isn't found"),
        (["my.operators"], {}, r"package 'my\.operators' doesn't tell its style: pass style=, one of ada, rosinality"),
        (["op"], {"style": "tf"}, r"style='tf', expected one of ada, rosinality, mmcv, basicsr"),
        (["../op"], {}, r"package '\.\./op', expected a dotted name"),
        ([3], {}, r"package 3, expected a dotted name"),
        (["op"], {"leave": "fma"}, r"leave='fma', expected names of modules"),
        (["op"], {"leave": [1]}, r"leave=\(1,\), expected names of modules"),
        (["op"], {"leave": ["fma"]}, r"leave='fma': no such module in op"),
        (
            ["x"],
            {"style": "basicsr", "leave": ["fused_act.fused_act"]},
            r"leave='fused_act\.fused_act': no such",
        ),
    ],
)
def test_wrong_arguments(names, options, message):
    finders = list(sys.meta_path)
    with pytest.raises(InputError, match=message):
        patch_stylegan_ops(*names, **options)
    assert sys.meta_path == finders


def test_style_of_another_name(tree):
    tree("custom/kernels/bias_act.py")
    with patch_stylegan_ops("custom.kernels", style="ada"):
        assert ours("custom.kernels.filtered_lrelu")
