"""What trained models are like, and what can be claimed about them."""
