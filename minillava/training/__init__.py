"""Training: what learns, from which data, and the loop that trains it."""
