"""Families of transformers in which image and text are read in one attention."""
