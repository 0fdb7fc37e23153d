"""Networks: tensors and numbers in, tensors out. Begin with `encodecmae.py`."""
