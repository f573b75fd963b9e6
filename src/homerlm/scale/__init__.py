"""Reading spread over processes and machines."""
