"""Options, recipes and where they are found."""
