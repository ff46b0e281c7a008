"""Hooks on a running pipeline: what they do at each call, of which step and rows it is, and how they come off again."""
