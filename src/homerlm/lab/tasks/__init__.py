"""What a method is evaluated on: tasks that make samples of any length, one a file."""
