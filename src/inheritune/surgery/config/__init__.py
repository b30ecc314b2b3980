"""The configuration of the new model, and the model built from it without weights."""
