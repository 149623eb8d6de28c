"""Faster forms of layers."""
