"""Measurements of cost, as counts and as ratios within one run."""
