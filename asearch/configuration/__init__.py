"""Recipes, settings and their errors: what a run is told to do."""
