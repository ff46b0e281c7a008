"""Methods that look at single predictions of the denoiser."""
