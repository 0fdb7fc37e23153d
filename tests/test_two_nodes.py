"""Two machines: two launchers of torchrun, which meet at an address."""

import json
import socket
import subprocess
import sys

import pytest
from commands import command, environment, execute

# The codec and the resampler take other paths for other batch sizes.
TOLERANCE = 1e-4


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_nodes(outputs, **options):
    """Runs a training on one process of each of two nodes; their exit codes, texts."""
    where = ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    nodes = []
    for rank, output in enumerate(outputs):
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2")
        launcher = (*torchrun, "--nproc_per_node=1", f"--node_rank={rank}", *where)
        arguments = command(output, launcher=launcher, **options)
        arguments += ["--distributed_backend", "gloo"]
        nodes.append(
            subprocess.Popen(
                arguments,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=outputs[0].parent,
                env=environment(),
            )
        )
    texts = [node.communicate(timeout=120)[0] for node in nodes]
    return [node.returncode for node in nodes], texts


def test_two_nodes_give_the_figures_of_one_process(tmp_path):
    options = {"crops_per_step": 4, "precision": "fp32", "training_steps": 6}
    options["valid_interval"] = 3
    codes, texts = run_nodes([tmp_path / "two"] * 2, batch_size=2, **options)
    assert codes == [0, 0], texts
    execute(command(tmp_path / "one", batch_size=4, **options), tmp_path)
    # The main process alone reports.
    assert ["step 6:" in text for text in texts] == [True, False]
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text())
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, float):
            # One frame of a few hundred may round to another code.
            margin = (
                {"rel": TOLERANCE} if "ce_" in name or "loss" in name else {"abs": 0.02}
            )
            value = pytest.approx(value, **margin)
        assert two[name] == value, name


def test_nodes_that_share_no_disk_are_told_so(tmp_path):
    outputs = [tmp_path / "here/run", tmp_path / "there/run"]
    for output in outputs:
        output.parent.mkdir()
    codes, texts = run_nodes(outputs)
    assert 0 not in codes
    assert "a disk that all machines share" in texts[1], texts
