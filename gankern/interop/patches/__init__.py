"""Our operators under the names and call signatures of existing StyleGAN code bases.

`patch` has the public functions; the folders hold what each style of code base imports, written from the call
signatures alone. Their files run once more under each patched name (`torch_utils.ops.bias_act`), so siblings among them
are imported by that name, not by gankern's.
"""

from gankern.interop.patches.patch import Patch, patch_stylegan_ops, unpatch_stylegan_ops

__all__ = ["Patch", "patch_stylegan_ops", "unpatch_stylegan_ops"]
