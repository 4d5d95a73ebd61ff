"""Passes: each changes a model in one way, and says in the recipe how to do it again."""
