"""Conversations of any length: which part of one is read as a document, and how it is answered."""
