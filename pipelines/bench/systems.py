"""The systems that are trained side by side: one batch, one set of weights, two libraries.

Every number follows from a `Work`. Weights are ours, with the family's initialisation and with vectors
moved off their zeros and ones (so that a bias in the wrong place shows); the family's own rule table
carries them over. The batch is drawn once, packed for polymodal and padded for the peer.

Useful operations of a training step (the same number for both sides; padding and places without a target
are not useful): 6 for each weight of a matrix and each token (2 forward, 4 backward; 4 for the pixels'
projection, which needs no gradient of its input); attention 12 D s^2 a layer and sequence of s tokens,
half of it where causal; the vocabulary head 6 V D a predicted token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...multimodal.clip import CLIPConfig
from ...multimodal.pairs import PairBatch
from ...registry import family
from ...seq2seq.gpt2 import CausalBatch, GPT2Config
from ...seq2seq.t5 import T5Config
from ...seq2seq.teacher_forcing import Seq2SeqBatch, Seq2SeqExample, pad_pairs
from ...shared.attention.position import document_positions
from ...shared.convert import Rule, to_theirs
from ...shared.corrupt import choose_places, prediction_count, replace_places
from ...shared.family import Context
from ...shared.loss import IGNORE
from ...shared.system import Batch, System
from ...text.bert import BertBatch, BertConfig
from ...vision.classify import ImageBatch
from ...vision.vit import ViTConfig
from . import plain
from .machine import need

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Work:
    """What both sides train on: picklable, and with the seed it fixes every number."""

    system: str
    """An entry in `SUBJECTS`: a family, and after a hyphen another peer than its usual one."""
    config: Any
    lengths: tuple[int, ...]
    """Tokens of each sequence (of each caption)."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs under autocast, with fp32 weights."""
    seed: int = 0

    @property
    def family(self) -> str:
        """The family of our side."""
        return self.system.partition("-")[0]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self.lengths)

    def still(self) -> Work:
        """The same without dropout, which draws differently on each side."""
        off = {name: 0.0 for name in vars(self.config) if name.endswith(("_pdrop", "_dropout_prob", "dropout_rate"))}
        return replace(self, config=replace(self.config, **off))


Loss = Callable[[nn.Module], Tensor]
"""The loss of the batch, by a module that may be a compiled one."""


@dataclass(frozen=True)
class Subject:
    """A system with its peer."""

    batch: Callable[[Work], Batch]
    peer: Callable[[Work, System], tuple[nn.Module, Loss]]
    """(the work, our system with the weights to take over) -> the peer's module, its loss."""
    rules: Callable[[Any], Sequence[Rule]]
    flops: Callable[[Work], float]
    library: str = "transformers"


def our_system(work: Work) -> System:
    """The family's own system on the work's device, as the trainer would build it, without a tokenizer."""
    return fresh(lambda: family(work.family).pretraining.build(work.config, {}, Context(net_only=True)), work.seed, work.device)


def our_loss(work: Work) -> Loss:
    """The loss as the loop forms it: each term's sum over its count."""
    batch = SUBJECTS[work.system].batch(work).to(work.device)

    def loss(system: nn.Module) -> Tensor:
        return cast(Tensor, sum(t.weight * t.total / batch.counts[t.count] for t in system(batch).terms.values()))

    return loss


def fresh(build: Callable[[], ModuleT], seed: int, device: str = "cpu") -> ModuleT:
    """A module with its family's initialisation, and noise on its vectors; drawn on its device, where a billion numbers take no minute."""
    with torch.random.fork_rng(devices=[] if device == "cpu" else None), torch.device(device):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def copy_weights(ours: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> None:
    """Give the peer's module our weights; what its own tying or a buffer fills in may be missing, nothing else."""
    found = theirs.load_state_dict(to_theirs(rules, ours.state_dict()), strict=False)
    if hasattr(theirs, "tie_weights"):
        cast(Any, theirs).tie_weights()
    assert not found.unexpected_keys, found.unexpected_keys
    lacking = set(found.missing_keys) & {name for name, _ in theirs.named_parameters()}
    assert not lacking, lacking


def rules_of(system: str, config: Any) -> Sequence[Rule]:
    """The table of the family's pretraining network, in transformers' layout."""
    return family(system).nets[0].format("transformers").rules(config)


def padded(rows: Tensor, lengths: tuple[int, ...], filling: int, width: int = 0) -> Tensor:
    """Packed values [T] as rows [B, longest] (at least `width` wide)."""
    parts = list(rows.split(list(lengths)))
    out = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=filling)
    return nn.functional.pad(out, (0, max(0, width - out.shape[1])), value=filling)


def padding_mask(lengths: tuple[int, ...]) -> Tensor | None:
    """1 where there is no padding; None without padding, which lets the peer take its fastest path."""
    if len(set(lengths)) == 1:
        return None
    return padded(torch.ones(sum(lengths), dtype=torch.long), lengths, 0)


def on(device: str, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The inputs that there are, on the device."""
    return {k: v.to(device) for k, v in inputs.items() if v is not None}


def transformer_flops(layers: int, hidden: int, intermediate: int, lengths: tuple[int, ...], *, causal: bool) -> float:
    """Useful operations, forward and backward, of a stack over sequences of these lengths; see the module."""
    weights = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    attention = layers * hidden * sum(s * s for s in lengths) * (6 if causal else 12)
    return 6 * weights * sum(lengths) + attention


# ------------------------------------------------------------------------------------------------ BERT


def bert_batch(work: Work) -> BertBatch:
    """Random words, masked as BERT masks them."""
    rng = np.random.default_rng(work.seed)
    config: BertConfig = work.config
    ids: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    start = 0
    for length in work.lengths:
        inner = np.ones(length, dtype=bool)
        inner[[0, -1]] = False
        words = rng.integers(5, config.vocab_size, length)
        places = choose_places(inner, prediction_count(length, 0.15, None), rng)
        noisy = replace_places(words, places, rng, mask_id=4, words=config.vocab_size)
        ids.append(noisy.ids)
        rows.append(noisy.positions + start)
        targets.append(noisy.targets)
        start += length
    masked, pairs = sum(map(len, rows)), len(work.lengths)
    return BertBatch(
        counts={"masked": masked, "pairs": pairs}, tokens=work.tokens, lengths=work.lengths, position_ids=document_positions(work.lengths),
        input_ids=torch.from_numpy(np.concatenate(ids))[None],
        token_type_ids=torch.cat([(torch.arange(n) > n // 2).long() for n in work.lengths])[None],
        target_rows=torch.from_numpy(np.concatenate(rows)), targets=torch.from_numpy(np.concatenate(targets)),
        next_sentence=torch.from_numpy(rng.integers(0, 2, pairs)),
    )  # fmt: skip


def bert_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """BERT of transformers: SDPA, the head on every position, as its class computes it."""
    transformers = need("transformers")
    with torch.device(work.device):
        module = transformers.BertForPreTraining(transformers.BertConfig(**work.config.to_dict(), attn_implementation="sdpa"))
    copy_weights(ours.net, module, rules_of("bert", work.config))
    batch = bert_batch(work)
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    inputs = on(work.device, {
        "input_ids": padded(batch.input_ids[0], work.lengths, 0), "attention_mask": padding_mask(work.lengths),
        "token_type_ids": padded(batch.token_type_ids[0], work.lengths, 0), "labels": padded(labels, work.lengths, IGNORE),
        "next_sentence_label": batch.next_sentence,
    })  # fmt: skip
    return module, lambda m: m(**inputs).loss


def bert_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c: BertConfig = work.config
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, work.lengths, causal=False)
    head = 6 * bert_batch(work).counts["masked"] * c.hidden_size * (c.vocab_size + c.hidden_size)
    return trunk + head + 6 * len(work.lengths) * c.hidden_size**2


# ----------------------------------------------------------------------------------------------- GPT-2


def gpt2_batch(work: Work) -> CausalBatch:
    """Random words; every token but a sequence's first is predicted from those before it."""
    rng = np.random.default_rng(work.seed)
    ids = torch.from_numpy(rng.integers(0, work.config.vocab_size, work.tokens))
    targets = torch.cat([torch.cat([row[1:], torch.tensor([IGNORE])]) for row in ids.split(list(work.lengths))])
    return CausalBatch(counts={"targets": work.tokens - len(work.lengths)}, tokens=work.tokens, lengths=work.lengths,
                       input_ids=ids[None], position_ids=document_positions(work.lengths), targets=targets)  # fmt: skip


def gpt2_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """GPT-2 of transformers: SDPA; it shifts the labels itself."""
    transformers = need("transformers")
    with torch.device(work.device):
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**work.config.to_dict(), attn_implementation="sdpa"))
    copy_weights(ours.net, module, rules_of("gpt2", work.config))
    ids = gpt2_batch(work).input_ids[0]
    inputs = on(work.device, {"input_ids": padded(ids, work.lengths, 0), "attention_mask": padding_mask(work.lengths),
                              "labels": padded(ids, work.lengths, IGNORE)})  # fmt: skip
    return module, lambda m: m(**inputs, use_cache=False).loss


def plain_gpt2_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """GPT-2 in torch alone; padding behind a row changes nothing before it."""
    with torch.device(work.device):
        module = plain.PlainGPT2(work.config)
    copy_weights(ours.net, module, plain.rules(work.config))
    batch = gpt2_batch(work)
    ids, targets = (padded(x, work.lengths, filling).to(work.device) for x, filling in ((batch.input_ids[0], 0), (batch.targets, IGNORE)))
    return module, lambda m: m(ids, targets)


def gpt2_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c: GPT2Config = work.config
    trunk = transformer_flops(c.n_layer, c.n_embd, c.n_inner or 4 * c.n_embd, work.lengths, causal=True)
    return trunk + 6 * (work.tokens - len(work.lengths)) * c.n_embd * c.vocab_size


# ------------------------------------------------------------------------------------------------ CLIP


def clip_batch(work: Work) -> PairBatch:
    """Random pictures and captions, one for each length."""
    config: CLIPConfig = work.config
    text, size, pairs = config.text_config, cast(Any, config.vision_config).image_size, len(work.lengths)
    generator = torch.Generator().manual_seed(work.seed)
    ids = torch.randint(1, text.vocab_size - 2, (work.tokens,), generator=generator)
    ends = torch.tensor(work.lengths).cumsum(0)
    ids[ends - 1] = text.vocab_size - 1  # the end-of-text token is the highest id, as in CLIP's vocabulary
    ids[torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])] = text.vocab_size - 2
    return PairBatch(
        counts={"pairs": pairs}, tokens=work.tokens, lengths=work.lengths, input_ids=ids[None],
        position_ids=document_positions(work.lengths),
        images=torch.randint(256, (pairs, 3, size, size), generator=generator, dtype=torch.uint8),
        keys=tuple(bytes([i % 256, i // 256]) for i in range(pairs)),
    )  # fmt: skip


def clip_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """CLIP of open_clip with its `ClipLoss`; captions padded to the context, pictures normalised beforehand."""
    open_clip = need("open_clip")
    layout = family("clip").nets[0].format("open_clip")
    assert layout.write is not None
    with torch.device(work.device):
        module = open_clip.CLIP(**layout.write(ours.net)["model_cfg"], output_dict=False)
    copy_weights(ours.net, module, layout.rules(work.config))
    criterion = open_clip.ClipLoss()
    batch = clip_batch(work)
    texts = padded(batch.input_ids[0], work.lengths, 0, work.config.text_config.max_position_embeddings).to(work.device)
    images = cast(Any, ours).normalize(batch.images.to(work.device))
    return module, lambda m: criterion(*m(images, texts))


def clip_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c: CLIPConfig = work.config
    text, vision, pairs = cast(Any, c.text_config), cast(Any, c.vision_config), len(work.lengths)
    patches = (vision.image_size // vision.patch_size) ** 2
    image = transformer_flops(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size, (patches + 1,) * pairs, causal=False)
    pixels = 4 * 3 * vision.patch_size**2 * vision.hidden_size * patches * pairs
    words = transformer_flops(text.num_hidden_layers, text.hidden_size, text.intermediate_size, work.lengths, causal=True)
    return image + pixels + words + 6 * pairs * c.projection_dim * (vision.hidden_size + text.hidden_size + 2 * pairs)


# -------------------------------------------------------------------------------------------------- T5


def t5_batch(work: Work) -> Seq2SeqBatch:
    """Random words and targets, as long as span corruption makes them of texts of 512 tokens (114)."""
    rng = np.random.default_rng(work.seed)
    config: T5Config = work.config
    drawn = ((rng.integers(2, config.vocab_size, n), rng.integers(2, config.vocab_size, target_length(n))) for n in work.lengths)
    examples = [Seq2SeqExample(*pair) for pair in drawn]
    return pad_pairs(examples, config.pad_token_id, config.start_id)


def target_length(source: int) -> int:
    """Tokens of the target that belongs to a text with 15 % of its tokens in spans of 3."""
    return max(2, round(source * 114 / 512))


def t5_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """T5 of transformers; it makes the decoder's input of the labels."""
    transformers = need("transformers")
    with torch.device(work.device):
        module = transformers.T5ForConditionalGeneration(transformers.T5Config(**work.config.to_dict()))
    module.config.decoder_start_token_id = work.config.start_id
    copy_weights(ours.net, module, rules_of("t5", work.config))
    batch = t5_batch(work)
    inputs = on(work.device, {
        "input_ids": batch.input_ids, "attention_mask": None if bool(batch.attention_mask.all()) else batch.attention_mask.long(),
        "labels": padded(batch.targets, batch.lengths, IGNORE)})  # fmt: skip
    return module, lambda m: m(**inputs, use_cache=False).loss


def t5_flops(work: Work) -> float:
    """Useful operations of a step; see the module. The attention across is that of s x t places."""
    c: T5Config = work.config
    inner, sources, targets = c.num_heads * c.d_kv, work.lengths, tuple(target_length(n) for n in work.lengths)
    feed = (3 if "gated" in c.feed_forward_proj else 2) * c.d_model * c.d_ff
    encoder = c.num_layers * (6 * (4 * c.d_model * inner + feed) * sum(sources) + 12 * inner * sum(s * s for s in sources))
    each = 6 * (6 * c.d_model * inner + feed) * sum(targets) + 6 * inner * sum(t * t for t in targets)
    across = 6 * 2 * c.d_model * inner * sum(sources) + 12 * inner * sum(s * t for s, t in zip(sources, targets))
    return encoder + (c.num_decoder_layers or c.num_layers) * (each + across) + 6 * sum(targets) * c.d_model * c.vocab_size


# ------------------------------------------------------------------------------------------------- ViT


def vit_batch(work: Work) -> ImageBatch:
    """Random pictures, one for each entry of `lengths`."""
    config: ViTConfig = work.config
    count = len(work.lengths)
    generator = torch.Generator().manual_seed(work.seed)
    return ImageBatch(counts={"images": count}, tokens=count * ((config.image_size // config.patch_size) ** 2 + 1),
                      images=torch.randint(256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8),
                      labels=torch.randint(config.num_labels, (count,), generator=generator))  # fmt: skip


def vit_peer(work: Work, ours: System) -> tuple[nn.Module, Loss]:
    """Timm's VisionTransformer; pictures normalised beforehand."""
    timm = need("timm")
    c: ViTConfig = work.config
    with torch.device(work.device):
        module = timm.models.VisionTransformer(
            img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.hidden_size, depth=c.num_hidden_layers,
            num_heads=c.num_attention_heads, mlp_ratio=c.intermediate_size / c.hidden_size, num_classes=c.num_labels, global_pool="token")
    copy_weights(ours.net, module, _vit_rules(c))
    batch = vit_batch(work)
    images, labels = cast(Any, ours).normalize(batch.images.to(work.device)), batch.labels.to(work.device)
    return module, lambda m: nn.functional.cross_entropy(m(images), labels)


def vit_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c: ViTConfig = work.config
    count, patches = len(work.lengths), (c.image_size // c.patch_size) ** 2
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, (patches + 1,) * count, causal=False)
    return trunk + 4 * 3 * c.patch_size**2 * c.hidden_size * patches * count + 6 * count * c.hidden_size * c.num_labels


def _vit_rules(config: ViTConfig) -> Sequence[Rule]:
    return family("vit").nets[0].format("timm").rules(config)


def _t5_rules(config: T5Config) -> Sequence[Rule]:
    return rules_of("t5", config)


def clip_rules(config: CLIPConfig) -> Sequence[Rule]:
    """The table of open_clip's layout."""
    return family("clip").nets[0].format("open_clip").rules(config)


def _bert_rules(config: BertConfig) -> Sequence[Rule]:
    return rules_of("bert", config)


def _gpt2_rules(config: GPT2Config) -> Sequence[Rule]:
    return rules_of("gpt2", config)


SUBJECTS: dict[str, Subject] = {
    "bert": Subject(bert_batch, bert_peer, _bert_rules, bert_flops),
    "gpt2": Subject(gpt2_batch, gpt2_peer, _gpt2_rules, gpt2_flops),
    "gpt2-plain": Subject(gpt2_batch, plain_gpt2_peer, plain.rules, gpt2_flops, "plain-torch"),
    "t5": Subject(t5_batch, t5_peer, _t5_rules, t5_flops),
    "vit": Subject(vit_batch, vit_peer, _vit_rules, vit_flops, "timm"),
    "clip": Subject(clip_batch, clip_peer, clip_rules, clip_flops, "open_clip"),
}
