import pytest
import torch
from polymodal.shared.attention.position import BucketBias, document_positions, sinusoids
from polymodal.shared.block import ACTIVATIONS, FeedForward, LayerNorm, RMSNorm, activation, depth_scaled_
from polymodal.shared.embed import PatchEmbedding, TokenEmbedding, normal_, patchify
from polymodal.shared.errors import UserError
from polymodal.shared.heads import LMHead, Pooler, Transform, rows
from polymodal.shared.loss import cross_entropy_sum
from torch import nn


def test_bert_embeddings_sum_three_tables() -> None:
    torch.manual_seed(0)
    embed = TokenEmbedding(11, 8, max_positions=6, type_vocab_size=2, norm=lambda: LayerNorm(8))
    ids, types = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert embed.position is not None
    assert embed.token_type is not None
    assert embed.norm is not None
    want = embed.norm(embed.word(ids) + embed.position.weight[:3] + embed.token_type(types))
    torch.testing.assert_close(embed(ids, token_type_ids=types), want)
    torch.testing.assert_close(embed(ids), embed(ids, token_type_ids=torch.zeros_like(ids)))


def test_positions_restart_continue_and_end() -> None:
    torch.manual_seed(0)
    embed = TokenEmbedding(11, 8, max_positions=6, position_offset=2)
    assert embed.position is not None
    ids = torch.tensor([[3, 1, 4, 2]])
    torch.testing.assert_close(embed(ids), embed.word(ids) + embed.position.weight[2:6])
    packed = embed(ids, position_ids=document_positions((1, 3)))
    torch.testing.assert_close(packed, torch.cat([embed(ids[:, :1]), embed(ids[:, 1:])], dim=1))
    torch.testing.assert_close(embed(ids[:, 2:], offset=2), embed(ids)[:, 2:])
    with pytest.raises(UserError, match="has 4 positions and the text needs 5"):
        embed(ids[:, :1], offset=4)


def test_everything_starts_small() -> None:
    """N(0, 1) tables make denormal gradients, which a CPU multiplies several times slower."""
    torch.manual_seed(0)
    tables = TokenEmbedding(500, 32, max_positions=64, type_vocab_size=2)
    parts = [tables, PatchEmbedding(4, 32), LMHead(32, 500), Pooler(32), BucketBias(8)]
    for part in parts:
        for name, p in part.named_parameters():
            if p.dim() > 1:
                assert p.std() < 0.04, name
    net = nn.Sequential(nn.Linear(64, 64), nn.Embedding(64, 64), LayerNorm(64))
    normal_(net, 0.1)
    assert abs(net[0].weight.std().item() - 0.1) < 0.01
    assert abs(net[1].weight.std().item() - 0.1) < 0.01
    assert (net[0].bias == 0).all()
    assert (net[2].weight == 1).all()


@pytest.mark.parametrize("bias", [True, False])
def test_patches_equal_a_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 4, stride=4, bias=bias)
    ours = PatchEmbedding(4, 8, bias=bias)
    ours.projection.weight.data = conv.weight.data.flatten(1)
    if conv.bias is not None:
        ours.projection.bias.data = conv.bias.data
    images = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(ours(images), conv(images).flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)
    assert torch.equal(patchify(images, 4)[1, 4].reshape(3, 4, 4), images[1, :, 4:8, 4:8])
    with pytest.raises(UserError, match="8 x 10 pixels do not divide into patches of 4"):
        ours(images[..., :10])


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.arange(5), 6)
    for position in range(5):
        for i in range(3):
            angle = torch.tensor(position / 10000 ** (2 * i / 6))
            torch.testing.assert_close(table[position, 2 * i], angle.sin())
            torch.testing.assert_close(table[position, 2 * i + 1], angle.cos())
    halves = sinusoids(torch.arange(5), 6, interleaved=False)
    assert torch.equal(halves, torch.cat([table[:, 0::2], table[:, 1::2]], dim=1))
    with pytest.raises(ValueError, match="even"):
        sinusoids(torch.arange(5), 7)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_those_of_t5(bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    bias = BucketBias(2, num_buckets=32, max_distance=128, bidirectional=bidirectional)
    distance = torch.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, 32, 128)
    assert torch.equal(bias.bucket(distance), theirs)
    whole = bias(9, 9)
    assert whole.shape == (1, 2, 9, 9)
    assert torch.equal(bias(2, 9, offset=7), whole[:, :, 7:])


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu", "silu", "gelu_pytorch_tanh", "swish", "tanh"])
def test_activations_are_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 200)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x))


def test_an_unknown_activation_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gello'; known: gelu,"):
        activation("gello")


def test_norm_and_gated_feed_forward_are_those_of_t5() -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

    torch.manual_seed(0)
    x = torch.randn(3, 8)
    theirs, ours = T5LayerNorm(8, 1e-6), RMSNorm(8)
    theirs.weight.data = ours.weight.data = torch.randn(8)
    torch.testing.assert_close(ours(x), theirs(x))
    half = x.bfloat16()
    assert ours.bfloat16()(half).dtype == torch.bfloat16
    gated = T5DenseGatedActDense(T5Config(d_model=8, d_ff=12, dense_act_fn="gelu_new", dropout_rate=0.0))
    mine = FeedForward(8, 12, "gelu_new", gated=True, bias=False)
    mine.load_state_dict({"gate.weight": gated.wi_0.weight, "up.weight": gated.wi_1.weight, "down.weight": gated.wo.weight})
    torch.testing.assert_close(mine(x), gated(x))


@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_rms_norm_has_the_gradients_of_torch(frozen) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(6, eps=1e-2).double()
    norm.weight.data.normal_()
    norm.weight.requires_grad_(frozen != "weight")
    x = torch.randn(4, 2, 6, dtype=torch.float64).transpose(0, 1).requires_grad_(frozen != "x")
    learned = [t for t in (x, norm.weight) if t.requires_grad]
    want = nn.functional.rms_norm(x, (6,), norm.weight, 1e-2)
    torch.testing.assert_close(norm(x), want)
    gradient = torch.randn(2, 6, 4, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(torch.autograd.grad(norm(x), learned, gradient), torch.autograd.grad(want, learned, gradient))


def test_depth_scaled_initialisation() -> None:
    from polymodal.shared.attention import Attention
    from polymodal.shared.block import Block

    torch.manual_seed(0)
    blocks = [Block(Attention(64, 4), FeedForward(64, 64), norm=lambda: LayerNorm(64), order="pre") for _ in range(8)]
    depth_scaled_(blocks, 0.02)
    for block in blocks:
        for layer in (block.attention.out, block.feed_forward.down):
            assert abs(layer.weight.std().item() - 0.005) < 0.0005


def test_the_language_model_head_shares_its_table_and_reads_only_its_rows() -> None:
    torch.manual_seed(0)
    embed = TokenEmbedding(13, 8)
    head = LMHead(8, 13, transform=Transform(8, "gelu", lambda: LayerNorm(8)), weight=embed.word.weight, bias=True)
    assert head.weight is embed.word.weight
    assert head.bias is not None
    x, index = torch.randn(2, 5, 8), torch.tensor([9, 0, 4])
    few = rows(x, index)
    assert torch.equal(few, torch.stack([x[1, 4], x[0, 0], x[0, 4]]))
    torch.testing.assert_close(head(few), head(x).flatten(0, 1)[index])
    targets = torch.tensor([3, 12, -100])
    for chunk in (None, 2):
        torch.testing.assert_close(head.loss(few, targets, chunk), cross_entropy_sum(head(few), targets))
    head.loss(few, targets).backward()
    assert embed.word.weight.grad is not None
    assert embed.word.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="shared weight"):
        LMHead(8, 14, weight=embed.word.weight)


def test_the_pooler_reads_the_first_token_or_given_rows() -> None:
    torch.manual_seed(0)
    pooler, x = Pooler(8), torch.randn(2, 5, 8)
    torch.testing.assert_close(pooler(x), torch.tanh(x[:, 0] @ pooler.dense.weight.T + pooler.dense.bias))
    assert torch.equal(pooler(x), pooler(x[:, 0]))
