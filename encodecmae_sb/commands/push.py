"""Shares an exported folder on the Hugging Face hub.

    python recipes/push.py FOLDER user/name
    python recipes/push.py FOLDER user/name --private --licence apache-2.0

FOLDER is that of an encoder, a recogniser or a classifier. Its weights go up as
safetensors, its README.md becomes the model card, and the metrics.json in it or beside
it goes along. The token is huggingface_hub's: the variable HF_TOKEN, or what `hf auth
login` stored. A repository that is there gets a new commit.

What is refused: a folder that cannot be loaded again without running code from the hub,
with a class of your own, for example. Decoder and head of a pretraining stay here.
"""

import argparse

from encodecmae_sb.pretrained.card import NOT_STATED
from encodecmae_sb.pretrained.folder import MADE
from encodecmae_sb.pretrained.hub import push_folder


def main(argv):
    """Pushes what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", help="what a recipe exported")
    add("repository", help="user/name")
    add("--private", action="store_true", help="make a private repository")
    add("--licence", help="as the hub writes it: apache-2.0, mit, cc-by-nc-4.0, ...")
    add("--message", help="of the commit")
    add("--branch", help="made if it is not there; default: main")
    args = parser.parse_args(argv)
    pushed = push_folder(**vars(args))
    print(
        f"\nPushed to {pushed.url}, commit {pushed.commit}:\n  "
        + "\n  ".join(pushed.files)
        + f"\nLicence on the card: {pushed.licence}"
    )
    if pushed.licence == NOT_STATED:
        print("Nobody may use it without one: give --licence, such as apache-2.0.")
    print(
        "\nTo load it:\n"
        "  from encodecmae_sb.inference import load\n"
        f'  {pushed.kind} = load("{args.repository}@{pushed.commit}")\n'
        f"  {MADE[pushed.kind].use}"
    )
    return 0
