"""Data sets: found, decoded, augmented, batched."""
