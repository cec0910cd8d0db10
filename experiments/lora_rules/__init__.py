"""LoRA aggregation rules at equal bytes, on MiniLM with ranks that differ by client."""
