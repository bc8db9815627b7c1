"""One packed row: a prompt once, its answers beside it, and the attention that keeps them apart."""
