"""Models for other programs: writing them, and verifying them on real images."""
