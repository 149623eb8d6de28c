"""Data sets: located, decoded, augmented, batched."""
