"""Folders that recipes export, published weights, codec files."""
