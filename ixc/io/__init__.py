"""Files that appear whole or not at all, journals that outlive a kill, digests of data and of code."""
