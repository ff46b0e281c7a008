"""Pipeline: the only room that knows diffusers and holds live modules."""
