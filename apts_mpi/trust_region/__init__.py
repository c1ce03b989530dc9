"""Pure mathematics of trust regions: radius rule, L-SR1 model, subproblems, local solvers."""
