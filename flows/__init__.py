"""What runs in which order: sentences of stage names."""
