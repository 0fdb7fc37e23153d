"""The API of HEAR 2021, the Holistic Evaluation of Audio Representations.

    hear-validator encodecmae_sb.hear -m ENCODER_FOLDER

`heareval` and `hear-validator` take this module by its name. Source: Turian et al.,
HEAR: Holistic Evaluation of Audio Representations (arXiv 2203.03022).
"""

import torch
import torch.nn.functional as F
from torch import nn

from encodecmae_sb.nnet.chunks import (
    encode_in_chunks,
    frame_middle,
    frame_starts,
    shortest_item,
)
from encodecmae_sb.pretrained.published import load_encoder_source
from encodecmae_sb.utils.errors import UserError
from encodecmae_sb.utils.signal import resample

# HEAR allows 16 000, 22 050, 44 100 and 48 000 Hz, the encoder works at 24 000: only
# 48 000 keeps all that it has learnt to hear and is an exact multiple.
SAMPLE_RATE = 48000


class HearModel(nn.Module):
    """An encoder with the attributes that HEAR asks for.

    Arguments
    ---------
    encoder : AudioEncoder
        Put into eval mode.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder.eval()
        self.sample_rate = SAMPLE_RATE
        self.scene_embedding_size = encoder.dim
        self.timestamp_embedding_size = encoder.dim

    def forward(self, audio):
        """Embeddings of all frames; see `get_timestamp_embeddings`."""
        return encode_sounds(self.encoder, audio, self.sample_rate)


def load_model(model_file_path=""):
    """Loads an encoder.

    Arguments
    ---------
    model_file_path : str or Path
        A folder that a recipe exported, or the name of published weights.

    Returns
    -------
    HearModel
        On the CPU.

    Raises
    ------
    FileNotFoundError, UserError
        As `load_encoder_source`.

    Example
    -------
    >>> from encodecmae_sb.pretrained.folder import export_encoder
    >>> from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
    >>> folder = getfixture("tmp_path") / "encoder"
    >>> transformer = ResiDualTransformer(64, 2, 4, 96)
    >>> export_encoder(AudioEncoder(LogMel(), transformer), folder)
    >>> model = load_model(folder)
    >>> embeddings, timestamps = get_timestamp_embeddings(torch.zeros(2, 48000), model)
    >>> embeddings.shape, timestamps.shape
    (torch.Size([2, 75, 64]), torch.Size([2, 75]))
    >>> timestamps[0, :3]  # ms
    tensor([ 6.6667, 20.0000, 33.3333], dtype=torch.float64)
    >>> get_scene_embeddings(torch.zeros(2, 48000), model).shape
    torch.Size([2, 64])
    """
    if not str(model_file_path):
        raise UserError(
            "model_file_path is empty, and there are no default weights: give a folder "
            "that a recipe exported, hear-validator encodecmae_sb.hear -m FOLDER"
        )
    return HearModel(load_encoder_source(model_file_path))


def get_timestamp_embeddings(audio, model):
    """An embedding for each frame, about 75 a second.

    Arguments
    ---------
    audio : torch.Tensor
        Mono samples in [-1, 1] at `model.sample_rate`, shape [sounds, samples].
        Sounds longer than 4 s are encoded in chunks of 4 s.
    model : HearModel

    Returns
    -------
    embeddings : torch.Tensor
        float32, shape [sounds, timestamps, D].
    timestamps : torch.Tensor
        Middle of what each frame describes, in ms, shape [sounds, timestamps].
        Evenly spaced, except that published log-mel encoders leave a gap of
        38 instead of 13 ms between chunks.

    Raises
    ------
    UserError
        If there are no samples.
    """
    embeddings = model(audio)
    front_end = model.encoder.front_end
    # float32 could not tell frames apart evenly after a few seconds.
    dtype = torch.float32 if audio.is_mps else torch.float64
    frame = torch.arange(embeddings.shape[1], dtype=dtype, device=audio.device)
    middle = frame_starts(front_end, frame) + frame_middle(front_end)  # samples
    timestamps = middle * 1000 / front_end.sample_rate
    return embeddings, timestamps.expand(len(audio), -1)


def get_scene_embeddings(audio, model):
    """One embedding for each sound: the mean over its frames.

    Arguments
    ---------
    audio : torch.Tensor
        As for `get_timestamp_embeddings`.
    model : HearModel

    Returns
    -------
    torch.Tensor
        float32, shape [sounds, D].
    """
    return model(audio).mean(1)


@torch.no_grad()
def encode_sounds(encoder, audio, sample_rate):
    """Encodes sounds of one length, however short or long.

    Arguments
    ---------
    encoder : AudioEncoder
        In eval mode.
    audio : torch.Tensor
        Samples in [-1, 1], shape [B, N]; silence is added to what is shorter than a
        frame.
    sample_rate : int
        Rate of `audio`, in Hz.

    Returns
    -------
    torch.Tensor
        float32, shape [B, T, D].

    Raises
    ------
    UserError
        If there are no samples.
    """
    if audio.dim() != 2 or 0 in audio.shape:
        raise UserError(
            f"audio of shape {list(audio.shape)}: [sounds, samples] is needed, with "
            "at least one of each."
        )
    front_end = encoder.front_end
    wavs = resample(audio.float(), sample_rate, front_end.sample_rate)
    wavs = F.pad(wavs, (0, max(shortest_item(front_end) - wavs.shape[1], 0)))
    return torch.stack(encode_in_chunks(encoder, wavs)).float()
