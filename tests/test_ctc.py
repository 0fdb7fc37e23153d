"""The Brain of recognition, step by step."""

from types import SimpleNamespace

import pytest
import torch
from recognition import export_tiny
from speechbrain import Stage

from encodecmae_sb.brains.ctc import CTCBrain
from encodecmae_sb.data.speech import collate_speech
from encodecmae_sb.data.tokenizer import Tokens
from encodecmae_sb.lobes import CTCHead, EnCodecMAE
from encodecmae_sb.utils.checkpointer import AtomicCheckpointer
from encodecmae_sb.utils.recoverables import History


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An exported random encoder."""
    return export_tiny(tmp_path_factory.mktemp("exported") / "encoder")


def test_an_encoder_that_waits_needs_no_gradients_in_fp16(encoder, tmp_path):
    lobe, head = EnCodecMAE(encoder, freeze=False), CTCHead(32, 8)
    hparams = {"lr": 0.1, "lr_encoder": 0.1, "freeze_steps": 1}
    brain = CTCBrain(
        modules={"encoder": lobe, "head": head},
        opt_class=torch.optim.AdamW,
        hparams={**hparams, "noprogressbar": True},
        checkpointer=AtomicCheckpointer(tmp_path),
        tokens=None,
    )
    brain.init_optimizers()
    brain.scaler = torch.amp.GradScaler("cpu")
    moved = []
    for _ in range(2):
        before = [p.detach().clone() for p in lobe.encoder.transformer.parameters()]
        with torch.set_grad_enabled(brain.optimizer_step >= 1):
            frames = lobe(torch.rand(1, 16000), torch.ones(1))
        with torch.enable_grad():
            log_probs, _ = head(frames)
        brain.scaler.scale(log_probs.square().mean()).backward()
        brain.optimizers_step()
        after = lobe.encoder.transformer.parameters()
        pairs = zip(before, after, strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    assert moved == [False, True]


def test_a_batch_of_which_nothing_can_be_read(encoder):
    tokens = Tokens.of_characters(["AB"])
    lobe = EnCodecMAE(encoder, freeze=False, input_sample_rate=24000)
    head = CTCHead(lobe.dim, len(tokens), hidden_size=8)

    class Brain(CTCBrain):
        def init_optimizers(self):
            self.optimizers_dict = {}

    hparams = {
        "history": History(),
        "epoch_counter": SimpleNamespace(current=1),
        **{"seed": 0, "freeze_steps": 0, "lr_schedule": None},
    }
    modules = {"encoder": lobe, "head": head}
    run_opts = {"device": "cpu"}
    brain = Brain(modules, None, hparams, run_opts, tokens=tokens)
    brain.init_optimizers()
    brain.total_steps, brain.step = 10, 1
    nothing = {"id": "a", "sig": None, "wrd": "AB", "unusable": ("a.wav", "gone")}
    nothing["tokens"] = torch.tensor(tokens.encode("AB"))
    batch = collate_speech([nothing, {**nothing, "unusable": ("b.wav", "gone")}])
    noted = []
    brain.unusable = SimpleNamespace(add=noted.extend)
    brain.avg_train_loss = 3.0
    loss = brain.fit_batch(batch)
    assert brain.update_average(loss, brain.avg_train_loss) == 3.0
    # Every parameter takes part, as other processes wait for that, with no effect.
    gradients = [p.grad for module in (lobe, head) for p in module.parameters()]
    assert all(grad is not None and not grad.any() for grad in gradients)
    assert [tuple(item) for item in noted] == [("a.wav", "gone"), ("b.wav", "gone")]
    brain.on_stage_start(Stage.VALID)
    good = {**nothing, "sig": 0.1 * torch.randn(24000), "unusable": None}
    with torch.no_grad():
        alone = brain.update_average(
            brain.evaluate_batch(collate_speech([{**good}]), Stage.VALID), 0.0
        )
        average = 0.0
        brain.step = 0
        for items in ([nothing], [{**good}], [nothing], [{**good}], [nothing]):
            brain.step += 1
            loss = brain.evaluate_batch(collate_speech(items), Stage.VALID)
            average = brain.update_average(loss, average)
    assert average == pytest.approx(alone)
    assert brain.wer.ids == ["a"] * 3
