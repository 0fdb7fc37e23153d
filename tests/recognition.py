"""What the tests of recognition share."""

import csv

import torch

from encodecmae_sb.bundled import speech_folder
from encodecmae_sb.lobes import AudioEncoder, LogMel, ResiDualTransformer
from encodecmae_sb.pretrained.folder import export_encoder
from encodecmae_sb.pretrained.licence import ENCODEC


def link_speaker(root):
    """Links bundled utterances of a speaker in LibriSpeech's layout."""
    speaker = root / "small"
    speaker.symlink_to(speech_folder() / "dev/9001", target_is_directory=True)
    return root


def export_tiny(folder):
    """Exports a random encoder."""
    torch.manual_seed(0)
    transformer = ResiDualTransformer(32, 2, 2, 48)
    encoder = AudioEncoder(LogMel(), transformer)
    export_encoder(encoder, folder, licence=ENCODEC)
    return folder


def write_manifest(path, rows):
    """Writes rows as CSV, with the columns of the first."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
