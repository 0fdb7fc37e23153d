"""Learning rates over a run, and over the layers of a model."""

import math


def cosine_schedule(progress, lr, warmup=0.01, final=0.05):
    """Learning rate after a share of a run: linear warm-up, then half a cosine.

    Example
    -------
    >>> cosine_schedule(0.01, lr=1.0), round(cosine_schedule(1.0, lr=1.0), 2)
    (1.0, 0.05)
    """
    if progress < warmup:
        return lr * progress / warmup
    done = min(1.0, (progress - warmup) / (1 - warmup))
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def warmed(rate, step, lr, steps):
    """Lets a learning rate rise at the start of a run.

    Arguments
    ---------
    rate : float
        Without this warm-up, at this step.
    step : int
        Optimizer steps that are done.
    lr : float
        Where the rise ends.
    steps : int
        Its length.

    Returns
    -------
    float
        The lower one of `rate` and the rising one.

    Example
    -------
    >>> [warmed(1.0, step, lr=1.0, steps=4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(rate, lr * (step + 1) / steps)


def layer_scales(model, decay):
    """Shares of the learning rate by layer: the lower a layer, the lower its share.

    Of L layers of the encoder the last one has the share `decay`, the first one
    `decay ** L`, and what comes before it `decay ** (L + 1)`. A feed-forward that all
    layers share has the mean of their shares. Decoder and head have 1.

    Arguments
    ---------
    model : MaskedCodecModel
    decay : float
        In (0, 1].

    Returns
    -------
    dict of str to float
        By the name of the parameter.

    Example
    -------
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, MaskedCodecModel
    >>> from encodecmae_sb.lobes import ResiDualTransformer
    >>> encoder = AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96))
    >>> model = MaskedCodecModel(encoder, ResiDualTransformer(64, 1, 4, 96))
    >>> scales = layer_scales(model, 0.5)
    >>> scales["encoder.projection.weight"], scales["head.weight"]
    (0.125, 1.0)
    """
    depth = model.encoder.num_layers
    layers = [decay ** (depth - i) for i in range(depth)]
    shared = model.encoder.transformer.shared_ffn
    scales = {}
    for name, _ in model.named_parameters():
        part, _, inner = name.removeprefix("encoder.transformer.").partition(".")
        index = inner.partition(".")[0]
        if not name.startswith("encoder."):
            scale = 1.0
        elif not name.startswith("encoder.transformer."):
            scale = decay ** (depth + 1)
        elif part == "feed_forwards" and shared:
            scale = sum(layers) / depth
        elif part in ("layers", "feed_forwards"):
            scale = layers[int(index)]
        else:
            scale = layers[-1]  # the final norm
        scales[name] = scale
    return scales
