"""Between an encoder and a task: a sum of layers, and output layers for CTC."""

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.utils.errors import UserError

from .masking import frame_mask


class LayerSum(nn.Module):
    """A learnt sum of an encoder's layers, as a module of its own.

    SpeechBrain's recipes give a frozen `wav2vec2` no optimizer, so weights inside the
    lobe (`layer: weighted`) would never learn there. As the first part of `enc` they
    are trained with it::

        wav2vec2: !new:encodecmae_sb.lobes.EnCodecMAE
            source: /path/to/results/base/1234/encoder
            output_norm: True
            output_all_hiddens: True
            freeze: !ref <freeze_wav2vec>

        dnn: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
            input_shape: [null, null, 768]
            activation: !ref <activation>
            dnn_blocks: !ref <dnn_layers>
            dnn_neurons: !ref <dnn_neurons>

        enc: !new:torch.nn.Sequential
            - !new:encodecmae_sb.lobes.LayerSum
                num_layers: 10
            - !ref <dnn>

    Arguments
    ---------
    num_layers : int
        Layers of the encoder.

    Example
    -------
    >>> LayerSum(4)(torch.zeros(4, 2, 75, 64)).shape
    torch.Size([2, 75, 64])
    """

    def __init__(self, num_layers):
        super().__init__()
        self.num_layers = num_layers
        self.layer_weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, layers):
        """Adds layers.

        Arguments
        ---------
        layers : torch.Tensor
            What the lobe gives with `output_all_hiddens`, shape [layers, B, T, D].

        Returns
        -------
        torch.Tensor
            Shape [B, T, D].

        Raises
        ------
        UserError
            If it is another number of layers, or a single one.
        """
        if layers.dim() != 4 or len(layers) != self.num_layers:
            raise UserError(
                f"LayerSum got shape {list(layers.shape)}: [layers, batch, frames, "
                f"width] is needed, with num_layers={self.num_layers} layers. Give the "
                "lobe output_all_hiddens: True, and num_layers the encoder's number."
            )
        return sum_layers(layers, self.layer_weights)


class StoredLayers(LayerSum):
    """Stands for an encoder whose frames were computed before: a learnt sum of them.

    Arguments
    ---------
    num_layers : int

    Example
    -------
    >>> StoredLayers(4)(torch.zeros(2, 75, 4, 64)).shape
    torch.Size([2, 75, 64])
    """

    freeze = True

    def num_frames(self, num_stored):
        """Frames of an item: as many as were stored."""
        return num_stored

    def forward(self, frames, lens=None):
        """Adds layers, [B, T, layers, D] -> [B, T, D]."""
        return super().forward(frames.permute(2, 0, 1, 3))


def sum_layers(layers, layer_weights):
    """Sum of layers [L, ...], with the softmax of weights [L]: [...]."""
    weights = layer_weights.softmax(0)
    return (weights.view(-1, *[1] * (layers.dim() - 1)) * layers).sum(0)


class CTCHead(nn.Module):
    """Frames of an encoder -> log-probabilities of tokens, for CTC.

    The paper's, after SUPERB: two bidirectional LSTM layers of 1024 over frozen
    features. With `recurrent=False`, plain fully connected layers, for an encoder
    that is trained along.

    Arguments
    ---------
    input_size : int
        Width of the encoder's frames, D.
    num_tokens : int
        Tokens, the blank (index 0) included.
    hidden_size : int
        Width of the layers, per direction.
    num_layers : int
        Number of layers before the output; 0 with `recurrent=False` is a linear head.
    recurrent : bool
        LSTM or fully connected layers.
    stack : int
        Frames put side by side before the first layer: 2 halves the rate, from 75 to
        37.5 a second.
    dropout : float
        Between layers and before the output.

    Example
    -------
    >>> head = CTCHead(64, num_tokens=29, hidden_size=32, stack=2)
    >>> log_probs, num_steps = head(torch.zeros(2, 75, 64), torch.tensor([75, 30]))
    >>> log_probs.shape, num_steps
    (torch.Size([2, 38, 29]), tensor([38, 15]))
    """

    def __init__(
        self,
        input_size,
        num_tokens,
        hidden_size=1024,
        num_layers=2,
        recurrent=True,
        stack=1,
        dropout=0.0,
    ):
        super().__init__()
        self.input_size = input_size
        self.num_tokens = num_tokens
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.recurrent = recurrent
        self.stack = stack
        self.dropout = dropout
        self.norm = nn.LayerNorm(input_size)
        size = stack * input_size
        if recurrent:
            self.body = nn.LSTM(
                size,
                hidden_size,
                num_layers,
                batch_first=True,
                bidirectional=True,
                dropout=dropout if num_layers > 1 else 0.0,
            )
            size = 2 * hidden_size
        else:
            self.body = nn.Sequential()
            for _ in range(num_layers):
                self.body.append(nn.Linear(size, hidden_size))
                self.body.append(nn.LeakyReLU())
                self.body.append(nn.Dropout(dropout))
                size = hidden_size
        self.output = nn.Sequential(nn.Dropout(dropout), nn.Linear(size, num_tokens))

    def in_words(self):
        """The layers before the output layer, in words.

        Example
        -------
        >>> CTCHead(64, num_tokens=29).in_words()
        '2 BiLSTM layers of 1024'
        """
        if not self.num_layers:
            return "linear"
        kind = "BiLSTM" if self.recurrent else "fully connected"
        layers = "layer" if self.num_layers == 1 else "layers"
        return f"{self.num_layers} {kind} {layers} of {self.hidden_size}"

    def num_outputs(self, num_frames):
        """Output steps that a number of frames gives."""
        return -(-num_frames // self.stack)

    def forward(self, frames, num_frames=None):
        """Computes log-probabilities, in float32.

        Arguments
        ---------
        frames : torch.Tensor
            Shape [B, T, D].
        num_frames : torch.Tensor, optional
            Frames of each item, int64, at least 1, shape [B]; default: T. Frames
            after an item's end change nothing before it.

        Returns
        -------
        log_probs : torch.Tensor
            Shape [B, ceil(T / stack), num_tokens].
        num_steps : torch.Tensor
            Output steps of each item, int64, shape [B].
        """
        x = self.norm(frames)
        if num_frames is None:
            num_frames = torch.full((len(x),), x.shape[1], device=x.device)
        x = x * frame_mask(num_frames, x.shape[1])[..., None]
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stack))
        x = x.unflatten(1, (-1, self.stack)).flatten(2)  # [B, T', stack * D]
        num_steps = self.num_outputs(num_frames)
        if self.recurrent:
            # Packed, so that the backward direction starts at each item's own end.
            packed = nn.utils.rnn.pack_padded_sequence(
                x, num_steps.cpu(), batch_first=True, enforce_sorted=False
            )
            x, _ = nn.utils.rnn.pad_packed_sequence(
                self.body(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        else:
            x = self.body(x)
        return self.output(x).float().log_softmax(-1), num_steps
