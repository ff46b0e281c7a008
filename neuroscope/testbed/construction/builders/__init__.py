"""Random pipelines of the real classes, with their tokenizers and text encoders, in which nothing is planted yet."""
