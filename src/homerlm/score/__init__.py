"""Scores of tokens: attention, neighbours and sentences, surprisal, calibration."""
