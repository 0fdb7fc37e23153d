"""SpeechBrain's adapters on the lobe: few new weights learn, the others stay."""

from speechbrain.nnet.adapters import AdaptedModel
from torch import nn

from encodecmae_sb.nnet.chunks import unused_modules
from encodecmae_sb.utils.errors import UserError

from .encodecmae import EnCodecMAE


class AdaptedEnCodecMAE(AdaptedModel):
    """`EnCodecMAE` with SpeechBrain's adapters, LoRA or Houlsby's, in linear layers.

    SpeechBrain's own `AdaptedModel` wraps the lobe, too. This class adds what a recipe
    needs: it is exported with a recogniser; the weights of a sum of layers
    (`layer: weighted`) learn along; and each adapter learns, because layers that the
    output does not depend on get none.

    It is used as an `EnCodecMAE` is. A checkpoint of SpeechBrain's holds only what
    learns.

    Arguments
    ---------
    model_to_adapt : EnCodecMAE or callable
        The lobe, changed in place, or a function that makes it: a yaml says `!name:`,
        so that reading it loads nothing.
    adapter_class : callable
        `speechbrain.nnet.adapters.LoRA` or `HoulsbyAdapterLinear`, or another module
        that is made of a linear layer.
    all_linear : bool
        Adapt all linear layers of the encoder.
    target_layers : list of str
        Names of the linear layers to adapt, with wildcards, such as `"*.qkv"`. See
        `named_modules` of the lobe.
    unfrozen_layers : list of str
        Names of modules that learn as they are, with wildcards, such as `"*.norm1"`.
    adapter_kwargs : dict, optional
        Arguments of the adapter, such as `rank` or `projection_size`.

    Raises
    ------
    UserError
        If it is no lobe, or if no linear layer would be adapted, or another kind of
        layer.

    Example
    -------
    >>> import torch
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> from speechbrain.nnet.adapters import LoRA
    >>> lobe = EnCodecMAE(AudioEncoder(LogMel(), ResiDualTransformer(64, 2, 4, 96)))
    >>> adapted = AdaptedEnCodecMAE(
    ...     lobe, LoRA, target_layers=["*.qkv"], adapter_kwargs={"rank": 4}
    ... )
    >>> adapted(torch.rand(2, 16000)).shape
    torch.Size([2, 75, 64])
    >>> adapted.in_words()
    'LoRA in 2 layers, 2048 weights'
    """

    def __init__(
        self,
        model_to_adapt,
        adapter_class,
        all_linear=False,
        target_layers=(),
        unfrozen_layers=(),
        adapter_kwargs=None,
    ):
        if not isinstance(model_to_adapt, nn.Module):
            model_to_adapt = model_to_adapt()
        if not isinstance(model_to_adapt, EnCodecMAE):
            raise UserError(
                f"model_to_adapt is a {type(model_to_adapt).__name__}: give an "
                "encodecmae_sb.lobes.EnCodecMAE."
            )
        super().__init__(
            model_to_adapt,
            adapter_class,
            all_linear=all_linear,
            target_layers=list(target_layers),
            unfrozen_layers=list(unfrozen_layers),
            adapter_kwargs=adapter_kwargs or {},
            manual_adapter_insertion=True,
        )
        self.all_linear = all_linear
        self.target_layers = list(target_layers)
        self.unfrozen_layers = list(unfrozen_layers)
        self.replace_layers = self._layers_that_matter()
        self.insert_adapters()
        for name, parameter in model_to_adapt.named_parameters(recurse=False):
            # The weights of a sum of layers are new; SpeechBrain freezes them, too.
            assert name == "layer_weights"
            parameter.requires_grad_(True)

    @property
    def model_to_adapt(self):
        """The lobe, with its adapters."""
        return self.adapted_model

    def _layers_that_matter(self):
        """Names of the chosen layers, but for those whose adapters could not learn."""
        lobe = self.adapted_model
        idle = unused_modules(lobe.encoder, lobe.computed) + [lobe.encoder.front_end]
        idle = {module for part in idle for module in part.modules()}
        chosen = {name: lobe.get_submodule(name) for name in self.replace_layers}
        chosen = {name: chosen[name] for name in chosen if chosen[name] not in idle}
        for name, module in chosen.items():
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"target_layers={self.target_layers} names {name}, a "
                    f"{type(module).__name__}: only linear layers can be adapted."
                )
        if not chosen:
            linear = [
                name
                for name, module in lobe.named_modules()
                if isinstance(module, nn.Linear) and module not in idle
            ]
            raise UserError(
                f"target_layers={self.target_layers} names no layer that learns. Give "
                f"all_linear: True, or names from {', '.join(linear)}."
            )
        return list(chosen)

    def in_words(self):
        """What learns, for people."""
        made = getattr(self.adapter_class, "func", self.adapter_class)
        parameters = self.adapted_model.encoder.parameters()
        weights = sum(p.numel() for p in parameters if p.requires_grad)
        return (
            f"{made.__name__} in {len(self.replace_layers)} layers, {weights} weights"
        )
