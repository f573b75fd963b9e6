"""All that knows transformers: loading, the decoder driven layer by layer, memory, identity."""
