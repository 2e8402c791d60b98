"""Foreign checkpoints in: StyleGAN2 from state dicts under the public names, ProGAN from the original's variables."""

from gankern.interop.progan import progan_discriminator_from_tf, progan_generator_from_tf
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict

__all__ = [
    "discriminator_from_state_dict",
    "generator_from_state_dict",
    "progan_discriminator_from_tf",
    "progan_generator_from_tf",
]
