"""Hasten measures a trained model, makes it faster within an accuracy budget, and proves both."""

__all__ = ["__version__"]

__version__ = "0.1.0"
