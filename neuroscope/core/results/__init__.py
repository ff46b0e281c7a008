"""What methods find: scores of neurons and layers, effects, atlases, and how sure and how dear they are."""
