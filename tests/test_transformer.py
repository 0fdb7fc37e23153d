"""The ResiDual transformer, beside its formulas."""

import pytest
import torch
from random_values import noise, randomise

from encodecmae_sb.lobes import ResiDualTransformer
from encodecmae_sb.nnet.masking import frame_mask


def by_the_formulas(net, x):
    """The ResiDual transformer for one item [T, D], written out."""

    def attention(layer, a):
        size = net.num_heads * net.head_dim
        q, k, v = (a @ w.T for w in layer.attention.qkv.weight.split(size))
        heads = []
        for head in range(net.num_heads):
            part = slice(head * net.head_dim, (head + 1) * net.head_dim)
            scores = q[:, part] @ k[:, part].T / net.head_dim**0.5
            heads.append(scores.softmax(-1) @ v[:, part])
        return torch.cat(heads, -1) @ layer.attention.out.weight.T

    a = r = x
    layers = []
    for i, layer in enumerate(net.layers):
        ffn = net.feed_forwards[i if len(net.feed_forwards) > 1 else 0]
        u = attention(layer, a)
        a = layer.norm1(a + u)
        r = r + u
        v = (a @ ffn[0].weight.T + ffn[0].bias).relu() @ ffn[2].weight.T + ffn[2].bias
        a = layer.norm2(a + v)
        r = r + v
        layers.append(a)
    return a + net.final_norm(r), layers


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("heads", "head_dim"), [(4, None), (3, 21)])
def test_residual_transformer(shared, heads, head_dim):
    net = ResiDualTransformer(64, 3, heads, 96, head_dim=head_dim, shared_ffn=shared)
    randomise(net)
    assert len(net.feed_forwards) == (1 if shared else 3)
    assert net.head_dim * heads == (64 if head_dim is None else 63)
    x = noise(2, 17, 64)
    out = net(x)
    for i in range(2):
        last, layers = by_the_formulas(net, x[i])
        assert torch.allclose(out.last[i], last, atol=1e-5)
        for ours, want in zip(out.layers, layers, strict=True):
            assert torch.allclose(ours[i], want, atol=1e-5)


@torch.no_grad()
def test_transformer_ignores_padding():
    net = randomise(ResiDualTransformer(64, 3, 4, 96))
    x = noise(3, 20, 64)
    lengths = torch.tensor([20, 13, 1])
    x = torch.cat([x, 100 * noise(3, 10, 64, seed=1)], 1)
    padded = net(x, frame_mask(lengths, 30))
    for i, length in enumerate(lengths.tolist()):
        alone = net(x[i : i + 1, :length])
        assert torch.allclose(padded.last[i, :length], alone.last[0], atol=1e-5)
        for ours, want in zip(padded.layers, alone.layers, strict=True):
            assert torch.allclose(ours[i, :length], want[0], atol=1e-5)
    unmasked = net(x)
    assert not torch.allclose(unmasked.last[:, 0], padded.last[:, 0], atol=1e-3)


def test_width_that_heads_do_not_divide():
    with pytest.raises(ValueError, match="64.*12") as caught:
        ResiDualTransformer(64, 1, 12, 96)
    assert "head_dim" in str(caught.value)
    net = ResiDualTransformer(64, 1, 12, 96, head_dim=5)
    assert net(noise(1, 4, 64)).last.shape == (1, 4, 64)
