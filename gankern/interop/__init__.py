"""Foreign checkpoints in: networks built from a state dict under the public StyleGAN2-ADA names."""

from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict

__all__ = ["discriminator_from_state_dict", "generator_from_state_dict"]
