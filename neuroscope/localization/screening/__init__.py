"""Methods that score layers on single predictions of the denoiser."""
