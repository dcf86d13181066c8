"""Words and pictures -> ids, labels and pixel values -> batches."""
