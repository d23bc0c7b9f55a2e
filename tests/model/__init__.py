"""The engine against a model of itself, and mutants of its scripts that the model must notice."""
