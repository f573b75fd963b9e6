"""The server's application on several processes and machines, through Ray Serve."""
