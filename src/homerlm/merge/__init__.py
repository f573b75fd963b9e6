"""HOMER as published: the tree walk that merges chunks (paper section 3)."""
