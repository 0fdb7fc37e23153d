"""Metrics, probes, reconstruction."""
