"""What `torch_utils.ops` of the StyleGAN2-ADA and StyleGAN3 lineage imports."""
