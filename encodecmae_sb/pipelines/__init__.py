"""What needs data and a model but is no Brain."""
