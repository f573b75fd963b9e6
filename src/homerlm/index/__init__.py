"""A document kept for questions that come later: of every token, the keys that its model's heads find it by."""
