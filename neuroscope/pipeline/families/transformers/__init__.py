"""Families of transformers that cross-attend to the text."""
