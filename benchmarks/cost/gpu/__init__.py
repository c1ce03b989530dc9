"""An outer iteration on a GPU."""
