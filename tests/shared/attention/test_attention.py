import torch
from polymodal.shared.attention import Attention
from polymodal.shared.attention.cache import KVCache
from polymodal.shared.attention.choose import make_plan
from polymodal.shared.attention.mask import Mask
from polymodal.shared.embed import normal_
from torch.nn import MultiheadAttention

CPU = torch.device("cpu")


def test_equals_pytorch_multihead_attention() -> None:
    """Same weights as torch.nn.MultiheadAttention, padding and causal order included."""
    torch.manual_seed(0)
    theirs = MultiheadAttention(16, 4, batch_first=True)
    ours = Attention(16, 4)
    torch.nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict({
        "qkv.weight": theirs.in_proj_weight, "qkv.bias": theirs.in_proj_bias,
        "out.weight": theirs.out_proj.weight, "out.bias": theirs.out_proj.bias,
    })  # fmt: skip
    x = torch.randn(2, 6, 16)
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    order = torch.ones(6, 6).tril().bool()
    want, _ = theirs(x, x, x, key_padding_mask=~keep, attn_mask=~order)
    got = ours(x, make_plan(Mask(causal=True, keep=keep), 2, 6, 6, CPU))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_cross_attention_reads_the_memory_and_computes_its_keys_once() -> None:
    torch.manual_seed(1)
    cross = Attention(16, 2, head_size=4, bias=False, scale=1.0, cross=True)
    theirs = MultiheadAttention(16, 2, bias=False, batch_first=True)
    x, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    plan = make_plan(Mask(), 2, 3, 5, CPU)
    assert cross.q.weight.shape == (8, 16)
    assert cross.kv.weight.shape == (16, 16)
    assert theirs.in_proj_bias is None
    with torch.no_grad():
        want = cross(x, plan, memory)
        layer = KVCache(1, 4).layer(0)
        assert torch.equal(cross(x, plan, memory, layer), want)
        assert layer.cross is not None
        assert layer.cross[0].shape == (2, 2, 5, 4)
        assert torch.equal(cross(x, plan, None, layer), want)  # the memory is no longer needed
        assert not torch.allclose(cross(x, plan, memory + 1), want)


def test_the_scale_is_that_of_the_scores() -> None:
    torch.manual_seed(2)
    attention = Attention(8, 1, scale=0.0)  # all scores equal: a plain mean of the values
    normal_(attention, 0.5)
    x = torch.randn(1, 4, 8)
    out = attention(x, make_plan(Mask(), 1, 4, 4, CPU))
    mean = attention.out(attention.qkv(x)[..., 16:].mean(1, keepdim=True)).expand(-1, 4, -1)
    torch.testing.assert_close(out, mean)


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(3)
    attention = Attention(8, 2, dropout=0.5)
    x, plan = torch.randn(1, 4, 8), make_plan(Mask(), 1, 4, 4, CPU)
    assert not torch.equal(attention(x, plan), attention(x, plan))
    attention.eval()
    assert torch.equal(attention(x, plan), attention(x, plan))
