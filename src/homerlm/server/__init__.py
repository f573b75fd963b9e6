"""An HTTP server in the words of OpenAI's API, which reads documents of any length: `homer serve`."""
