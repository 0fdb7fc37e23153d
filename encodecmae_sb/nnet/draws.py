"""Random numbers that are a pure function of seeds: on any device, without any state.

They depend on no generator, no device, no other item of a batch and no number of
processes. So a run that was stopped goes on with the same numbers.
"""

import torch


def hash_seeds(seeds, counter):
    """Non-negative pseudo-random int64 from pairs (splitmix64's finaliser).

    Arguments
    ---------
    seeds, counter : torch.Tensor
        int64, of shapes that fit each other. The counter may be an int.

    Returns
    -------
    torch.Tensor
        int64.

    Example
    -------
    >>> hash_seeds(torch.tensor([1, 2, 1]), 5) % 100
    tensor([61, 49, 61])
    """
    counter = torch.as_tensor(counter)  # where products wrap around
    x = seeds + counter * -7046029254386353131  # 2^64 / golden ratio
    # torch's >> copies the sign bit; the masks clear the copies.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return x & 0x7FFFFFFFFFFFFFFF


def uniform(seeds, first, count):
    """Numbers from 0 to 1, evenly distributed.

    Arguments
    ---------
    seeds : torch.Tensor
        int64, shape [B].
    first : int
        Number of the first draw; others have other numbers.
    count : int
        How many draws.

    Returns
    -------
    torch.Tensor
        float32 in [0, 1), shape [B, count].

    Example
    -------
    >>> draws = uniform(torch.tensor([7, 8]), 0, 3)
    >>> bool((draws[:, 1:] == uniform(torch.tensor([7, 8]), 1, 2)).all())
    True
    """
    counter = torch.arange(first, first + count, device=seeds.device)
    # 24 bits: all that a float32 can tell apart.
    return (hash_seeds(seeds[:, None], counter) >> 39).float() / 2**24
