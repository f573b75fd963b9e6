"""Measuring: answers, perplexity, memory and speed."""
