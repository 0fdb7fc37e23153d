"""An encoder class for X-ARES, which scores audio encoders on many tasks.

X-ARES takes a Python file, given by its path relative to the current folder, with
one class whose name ends in `Encoder` and which is made without arguments. Write one
for each encoder, say `mini_encoder.py`::

    from encodecmae_sb import xares

    class MiniEncoder(xares.XaresEncoder):
        def __init__(self):
            super().__init__("results/mini/1234/encoder")

and run `python -m xares.run mini_encoder.py src/tasks/*.py`. X-ARES keeps the
embeddings it has computed under the name of the class: a class name used for a
second encoder would get the scores of the first. X-ARES 0.1 reads audio through
`torchaudio.load`, which from torchaudio 2.9 on needs the package torchcodec and
FFmpeg's libraries: without them it skips every file ("Empty dataloader").

Source: Zhang et al., X-ARES: A Comprehensive Framework for Assessing Audio Encoder
Performance, Interspeech 2025.
"""

import torch

from encodecmae_sb.hear import encode_sounds
from encodecmae_sb.nnet.chunks import seconds_per_frame
from encodecmae_sb.pretrained.published import load_encoder_source


class XaresEncoder(torch.nn.Module):
    """What X-ARES expects of an encoder.

    Arguments
    ---------
    source : str or Path
        A folder that a recipe exported, or the name of published weights.

    Raises
    ------
    FileNotFoundError, UserError
        As `load_encoder_source`.

    Example
    -------
    >>> from encodecmae_sb import lobes
    >>> from encodecmae_sb.pretrained.folder import export_encoder
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> transformer = lobes.ResiDualTransformer(64, 2, 4, 96)
    >>> export_encoder(lobes.AudioEncoder(lobes.LogMel(), transformer), folder)
    >>> encoder = XaresEncoder(folder)
    >>> encoder(torch.zeros(2, 50000)).shape
    torch.Size([2, 157, 64])
    >>> encoder.sampling_rate, encoder.output_dim, round(encoder.hop_size_in_ms, 3)
    (24000, 64, 13.333)
    """

    def __init__(self, source):
        super().__init__()
        self.encoder = load_encoder_source(source).eval()
        front_end = self.encoder.front_end
        self.sampling_rate = front_end.sample_rate
        self.output_dim = self.encoder.dim
        # What X-ARES needs to find a frame in long audio.
        self.hop_size_in_ms = 1000 * seconds_per_frame(front_end)

    def forward(self, audio):
        """Encodes.

        Arguments
        ---------
        audio : torch.Tensor
            Samples in [-1, 1] at `sampling_rate`, shape [B, N] or [N]. Audio longer
            than 4 s is encoded in chunks of 4 s.

        Returns
        -------
        torch.Tensor
            float32, shape [B, T, D]; B is 1 for audio of shape [N].

        Raises
        ------
        UserError
            If there are no samples.
        """
        if audio.dim() == 1:
            audio = audio[None]
        return encode_sounds(self.encoder, audio, self.sampling_rate)
