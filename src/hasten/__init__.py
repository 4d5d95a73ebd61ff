"""Hasten measures a trained model, makes it faster within an accuracy budget, and proves both."""

__version__ = "0.1.0"
