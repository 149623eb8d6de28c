"""Recipes, the training loop, validation and checkpoints."""
