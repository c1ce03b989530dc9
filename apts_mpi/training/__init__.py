"""A run: built from its settings, trained, evaluated, summarised and resumed."""
