"""Giving models away: publishing them on the Hugging Face Hub."""
