"""What `basicsr.ops` holds for StyleGAN2; `upfirdn2d` and `fused_act` are packages there."""
