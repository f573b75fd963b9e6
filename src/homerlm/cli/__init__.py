"""The command `homer`: it parses, calls the library and prints."""
