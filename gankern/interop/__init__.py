"""Networks from and to other projects: files of every kind in (reading.py) and out (writing.py), exports to other
runtimes (export.py); StyleGAN2 from state dicts under the public names, ProGAN from the original's variables. And our
operators into foreign code bases."""

from gankern.interop.patches import patch_stylegan_ops, unpatch_stylegan_ops
from gankern.interop.progan import progan_discriminator_from_tf, progan_generator_from_tf
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict

__all__ = [
    "discriminator_from_state_dict",
    "generator_from_state_dict",
    "patch_stylegan_ops",
    "progan_discriminator_from_tf",
    "progan_generator_from_tf",
    "unpatch_stylegan_ops",
]
