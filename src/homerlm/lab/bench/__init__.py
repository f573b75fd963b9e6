"""Speed and memory, measured beside the plain model and beside what the arithmetic alone would cost."""
