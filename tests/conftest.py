"""Shared fixtures."""

import pytest
import torch


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    """Names that every docstring example may use."""
    doctest_namespace["torch"] = torch
    torch.manual_seed(0)
