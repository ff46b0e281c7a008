"""Methods that make images with single layers patched."""
