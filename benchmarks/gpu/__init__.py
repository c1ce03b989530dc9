"""What an outer iteration costs on a GPU, beside a bare loop of the same evaluations."""
