"""Whether two models, or two parts of them, compute the same."""
