"""Recipes for published numbers that need a model hub: they run where one is reachable."""
