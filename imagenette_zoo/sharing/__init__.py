"""Trained weights for others: exports, publishing on the Hugging Face Hub, the demo."""
