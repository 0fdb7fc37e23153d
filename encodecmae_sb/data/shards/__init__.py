"""Tar shards: written, indexed, read."""
