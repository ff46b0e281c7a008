"""Families whose denoiser is a UNet."""
