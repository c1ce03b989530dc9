"""The method: APTS as published, its stochastic family, and the baselines."""
