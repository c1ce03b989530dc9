"""The cost model, its proof and its projections."""
