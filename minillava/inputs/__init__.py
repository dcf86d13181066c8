"""Text and pictures -> ids, labels and pixel values -> batches. The letters in shapes are in ``model/__init__.py``."""
