"""The search for the best layer for a fraction of all windows' NFE."""
