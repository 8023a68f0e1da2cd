"""Pure tensor functions: advantages, losses, KL."""
