"""Sliced Wasserstein distance and MS-SSIM."""
