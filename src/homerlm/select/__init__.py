"""The default method: chunks are scored, the best tokens are reranked and read as one short prompt."""
