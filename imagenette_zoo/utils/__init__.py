"""What everything else may use: the standard library and nothing of torch."""
