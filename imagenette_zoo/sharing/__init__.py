"""What is done with trained weights: predictions, exports, publishing on the Hugging Face Hub."""
