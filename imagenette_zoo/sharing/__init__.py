"""What is done with trained weights: predictions, exports."""
