"""Models for other programs: writing them, and verifying on real images that they answer as the model does."""
