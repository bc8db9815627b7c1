"""The record along the whole way, its media, and the readers of what others publish."""
