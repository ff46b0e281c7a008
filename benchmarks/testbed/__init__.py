"""How the bundled models are made from nothing, and how it is measured what they hold: `python -m benchmarks.testbed`."""
