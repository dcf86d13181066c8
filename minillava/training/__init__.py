"""What learns, from what, and how."""
