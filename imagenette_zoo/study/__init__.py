"""Studies: trainings with several seeds, their analysis, and the claims about them."""
