"""Corpora -> manifests -> batches. Nothing here knows a model."""
