"""`homer chat`: a conversation in the terminal."""
