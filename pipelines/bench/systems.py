"""The systems that are trained side by side; `masked` holds the encoders that predict masked words, `tuned` those that are fine-tuned."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...multimodal.clip import CLIPConfig
from ...multimodal.pairs import PairBatch
from ...registry import family
from ...seq2seq.bart import BartConfig
from ...seq2seq.gpt2 import GPT2Config
from ...seq2seq.gpt3 import GPT3Config
from ...seq2seq.mass import MassBatch, MassConfig, MassExample, collate_spans
from ...seq2seq.t5 import T5Config
from ...seq2seq.teacher_forcing import Seq2SeqBatch, Seq2SeqExample, packed_pairs
from ...shared.attention.position import document_positions
from ...shared.loss import IGNORE
from ...shared.system import System
from ...text.next_token import CausalBatch
from ...vision._masked_views import BeitSettings, MaskedViewBatch, blockwise_mask
from ...vision.beit import BeitConfig
from ...vision.classify import ImageBatch
from ...vision.mae import MAEConfig, MaskedPictureBatch
from ...vision.vit import ViTConfig
from . import hashed, masked, permuted, plain, recurrent, regional, taught, tuned
from .machine import need
from .pairing import Loss, Pairing, TrainSetup, copy_weights, on, padded, padding_mask, rules_of, transformer_flops

# ----------------------------------------------------------------------------------------------- GPT-2


def gpt2_batch(setup: TrainSetup) -> CausalBatch:
    """Random words; every token but a sequence's first is predicted from those before it."""
    rng = np.random.default_rng(setup.seed)
    ids = torch.from_numpy(rng.integers(0, setup.config.vocab_size, setup.tokens))
    targets = torch.cat([torch.cat([row[1:], torch.tensor([IGNORE])]) for row in ids.split(list(setup.lengths))])
    return CausalBatch(counts={"targets": setup.tokens - len(setup.lengths)}, tokens=setup.tokens, lengths=setup.lengths,
                       input_ids=ids[None], position_ids=document_positions(setup.lengths), targets=targets)  # fmt: skip


def gpt2_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """GPT-2 of transformers: SDPA; it shifts the labels itself."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**setup.config.to_dict(), attn_implementation="sdpa"))
    copy_weights(ours.net, module, rules_of("gpt2", setup.config))
    ids = gpt2_batch(setup).input_ids[0]
    inputs = on(setup.device, {"input_ids": padded(ids, setup.lengths, 0), "attention_mask": padding_mask(setup.lengths),
                              "labels": padded(ids, setup.lengths, IGNORE)})  # fmt: skip
    return module, lambda m: m(**inputs, use_cache=False).loss


def plain_gpt2_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """GPT-2 in torch alone; padding behind a row changes nothing before it."""
    with torch.device(setup.device):
        module = plain.PlainGPT2(setup.config)
    copy_weights(ours.net, module, plain.rules(setup.config))
    batch = gpt2_batch(setup)
    ids, targets = (padded(x, setup.lengths, filling).to(setup.device) for x, filling in ((batch.input_ids[0], 0), (batch.targets, IGNORE)))
    return module, lambda m: m(ids, targets)


def gpt2_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: GPT2Config = setup.config
    trunk = transformer_flops(c.n_layer, c.n_embd, c.n_inner or 4 * c.n_embd, setup.lengths, causal=True)
    return trunk + 6 * (setup.tokens - len(setup.lengths)) * c.n_embd * c.vocab_size


# ----------------------------------------------------------------------------------------------- GPT-3


def gpt3_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """GPT-2 of transformers, whose banded layers get their bands as a mask."""
    config: GPT3Config = setup.config
    module, loss = gpt2_peer(replace(setup, config=replace(config, window_size=None)), ours)
    place, size = torch.arange(max(setup.lengths), device=setup.device), config.window_size
    if size is not None:
        apart = place[:, None] - place
        band = ((apart >= 0) & (apart < size))[None, None]
        assert len(set(setup.lengths)) == 1, "rows without padding, so that the band is the whole mask"
        for block in cast(Any, module).transformer.h[1::2]:
            block.register_forward_pre_hook(partial(_banded, band))
    return module, loss


def _banded(band: Tensor, block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    states, cache, mask, *others = arguments
    assert mask is None
    return states, cache, band, *others


def gpt3_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. A banded layer of s tokens has s w - w (w - 1) / 2 pairs."""
    c: GPT3Config = setup.config
    pairs, bands = sum(s * s / 2 for s in setup.lengths), 0.0
    if c.window_size is not None:
        bands = sum(s * w - w * (w - 1) / 2 for s in setup.lengths for w in (min(s, c.window_size),)) - pairs
    return gpt2_flops(setup) + (c.n_layer // 2) * 12 * c.n_embd * bands


# ------------------------------------------------------------------------------------------------ CLIP


def clip_batch(setup: TrainSetup) -> PairBatch:
    """Random pictures and captions, one for each length."""
    config: CLIPConfig = setup.config
    text, size, pairs = config.text_config, cast(Any, config.vision_config).image_size, len(setup.lengths)
    generator = torch.Generator().manual_seed(setup.seed)
    ids = torch.randint(1, text.vocab_size - 2, (setup.tokens,), generator=generator)
    ends = torch.tensor(setup.lengths).cumsum(0)
    ids[ends - 1] = text.vocab_size - 1  # the end-of-text token is the highest id, as in CLIP's vocabulary
    ids[torch.cat([torch.zeros(1, dtype=torch.long), ends[:-1]])] = text.vocab_size - 2
    return PairBatch(
        counts={"pairs": pairs}, tokens=setup.tokens, lengths=setup.lengths, input_ids=ids[None],
        position_ids=document_positions(setup.lengths),
        images=torch.randint(256, (pairs, 3, size, size), generator=generator, dtype=torch.uint8),
        keys=tuple(bytes([i % 256, i // 256]) for i in range(pairs)),
    )  # fmt: skip


def clip_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """CLIP of open_clip with its `ClipLoss`; captions padded to the context, pictures normalised beforehand."""
    open_clip = need("open_clip")
    layout = family("clip").nets[0].format("open_clip")
    assert layout.write is not None
    with torch.device(setup.device):
        module = open_clip.CLIP(**layout.write(ours.net)["model_cfg"], output_dict=False)
    copy_weights(ours.net, module, layout.rules(setup.config))
    criterion = open_clip.ClipLoss()
    batch = clip_batch(setup)
    texts = padded(batch.input_ids[0], setup.lengths, 0, setup.config.text_config.max_position_embeddings).to(setup.device)
    images = cast(Any, ours).normalize(batch.images.to(setup.device))
    return module, lambda m: criterion(*m(images, texts))


def clip_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: CLIPConfig = setup.config
    text, vision, pairs = cast(Any, c.text_config), cast(Any, c.vision_config), len(setup.lengths)
    patches = (vision.image_size // vision.patch_size) ** 2
    image = transformer_flops(vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size, (patches + 1,) * pairs, causal=False)
    pixels = 4 * 3 * vision.patch_size**2 * vision.hidden_size * patches * pairs
    words = transformer_flops(text.num_hidden_layers, text.hidden_size, text.intermediate_size, setup.lengths, causal=True)
    return image + pixels + words + 6 * pairs * c.projection_dim * (vision.hidden_size + text.hidden_size + 2 * pairs)


# -------------------------------------------------------------------------------------------------- T5


def t5_batch(setup: TrainSetup) -> Seq2SeqBatch:
    """Random words and targets, as long as span corruption makes them of texts of 512 tokens (114)."""
    rng = np.random.default_rng(setup.seed)
    config: T5Config = setup.config
    drawn = ((rng.integers(2, config.vocab_size, n), rng.integers(2, config.vocab_size, target_length(n))) for n in setup.lengths)
    examples = [Seq2SeqExample(*pair) for pair in drawn]
    return packed_pairs(examples, config.start_id)


def target_length(source: int) -> int:
    """Tokens of the target that belongs to a text with 15 % of its tokens in spans of 3."""
    return max(2, round(source * 114 / 512))


def t5_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """T5 of transformers; it makes the decoder's input of the labels."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.T5ForConditionalGeneration(transformers.T5Config(**setup.config.to_dict()))
    module.config.decoder_start_token_id = setup.config.start_id
    copy_weights(ours.net, module, rules_of("t5", setup.config))
    batch = t5_batch(setup)
    inputs = on(setup.device, {
        "input_ids": padded(batch.input_ids[0], batch.lengths, setup.config.pad_token_id), "attention_mask": padding_mask(batch.lengths),
        "labels": padded(batch.targets, batch.decoder_lengths, IGNORE)})  # fmt: skip
    return module, lambda m: m(**inputs, use_cache=False).loss


def t5_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. The attention across is that of s x t places."""
    c: T5Config = setup.config
    inner, sources, targets = c.num_heads * c.d_kv, setup.lengths, tuple(target_length(n) for n in setup.lengths)
    feed = (3 if "gated" in c.feed_forward_proj else 2) * c.d_model * c.d_ff
    encoder = c.num_layers * (6 * (4 * c.d_model * inner + feed) * sum(sources) + 12 * inner * sum(s * s for s in sources))
    each = 6 * (6 * c.d_model * inner + feed) * sum(targets) + 6 * inner * sum(t * t for t in targets)
    across = 6 * 2 * c.d_model * inner * sum(sources) + 12 * inner * sum(s * t for s, t in zip(sources, targets))
    return encoder + (c.num_decoder_layers or c.num_layers) * (each + across) + 6 * sum(targets) * c.d_model * c.vocab_size


# ------------------------------------------------------------------------------------------------ BART


def bart_batch(setup: TrainSetup) -> Seq2SeqBatch:
    """Random words; a target is as long as its text."""
    rng = np.random.default_rng(setup.seed)
    config: BartConfig = setup.config
    drawn = ((rng.integers(3, config.vocab_size, n), rng.integers(3, config.vocab_size, n)) for n in setup.lengths)
    return packed_pairs([Seq2SeqExample(*pair) for pair in drawn], config.start_id)


def bart_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BART of transformers; it makes the decoder's input of the labels."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.BartForConditionalGeneration(transformers.BartConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("bart", setup.config))
    batch = bart_batch(setup)
    inputs = on(setup.device, {
        "input_ids": padded(batch.input_ids[0], batch.lengths, setup.config.pad_token_id), "attention_mask": padding_mask(batch.lengths),
        "labels": padded(batch.targets, batch.decoder_lengths, IGNORE)})  # fmt: skip
    return module, lambda m: m(**inputs, use_cache=False).loss


def bart_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: BartConfig = setup.config
    tokens, squares = setup.tokens, sum(n * n for n in setup.lengths)
    encoder = transformer_flops(c.encoder_layers, c.d_model, c.encoder_ffn_dim, setup.lengths, causal=False)
    decoder = transformer_flops(c.decoder_layers, c.d_model, c.decoder_ffn_dim, setup.lengths, causal=True)
    across = c.decoder_layers * (6 * 4 * c.d_model**2 * tokens + 12 * c.d_model * squares)
    return encoder + decoder + across + 6 * tokens * c.d_model * c.vocab_size


# ------------------------------------------------------------------------------------------------ MASS


def mass_batch(setup: TrainSetup) -> MassBatch:
    """Random words, with a span in the middle of which four fifths are masked."""
    rng = np.random.default_rng(setup.seed)
    config: MassConfig = setup.config
    examples: list[MassExample] = []
    for length in setup.lengths:
        ids, size = rng.integers(4, config.vocab_size, length), length // 2
        first = (length - size) // 2
        noisy, span = ids.copy(), slice(first, first + size)
        noisy[span] = np.where(rng.random(size) < 0.8, 3, noisy[span])
        examples.append(MassExample(noisy, ids[span], before=int(ids[first - 1]), place=first - 1))
    return collate_spans(examples, mask_id=3)


def mass_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BART of transformers: the decoder gets its positions at the table, and the masked places are hidden from it alone."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.BartForConditionalGeneration(transformers.BartConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("mass", setup.config))
    batch = mass_batch(setup)
    ids = padded(batch.input_ids[0], batch.lengths, setup.config.pad_token_id)
    there, inputs = padding_mask(batch.lengths), on(setup.device, {
        "decoder_input_ids": padded(batch.decoder_input_ids[0], batch.decoder_lengths, setup.config.pad_token_id),
        "labels": padded(batch.targets, batch.decoder_lengths, IGNORE)})
    seen = ((ids != 3) if there is None else (ids != 3) & there.bool()).long().to(setup.device)
    read = on(setup.device, {"input_ids": ids, "attention_mask": there})
    places = padded(batch.decoder_position_ids[0], batch.decoder_lengths, 0).to(setup.device)
    table = module.model.decoder.embed_positions
    table.forward = lambda *_, **__: nn.functional.embedding(places + table.offset, table.weight)

    def loss(m: Any) -> Tensor:
        return m(encoder_outputs=m.model.encoder(**read), attention_mask=seen, use_cache=False, **inputs).loss

    return module, loss


def mass_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. The attention across is that of t targets and the s places that are not masked."""
    c: MassConfig = setup.config
    batch = mass_batch(setup)
    sources, targets, seen = setup.lengths, batch.decoder_lengths, batch.seen_lengths
    encoder = transformer_flops(c.encoder_layers, c.d_model, c.encoder_ffn_dim, sources, causal=False)
    decoder = transformer_flops(c.decoder_layers, c.d_model, c.decoder_ffn_dim, targets, causal=True)
    pairs = sum(s * t for s, t in zip(seen, targets))
    across = c.decoder_layers * (6 * 2 * c.d_model**2 * (sum(targets) + sum(seen)) + 12 * c.d_model * pairs)
    return encoder + decoder + across + 6 * sum(targets) * c.d_model * c.vocab_size


# ------------------------------------------------------------------------------------------------- ViT


def vit_batch(setup: TrainSetup) -> ImageBatch:
    """Random pictures, one for each entry of `lengths`."""
    config: ViTConfig = setup.config
    count = len(setup.lengths)
    generator = torch.Generator().manual_seed(setup.seed)
    return ImageBatch(counts={"images": count}, tokens=count * ((config.image_size // config.patch_size) ** 2 + 1),
                      images=torch.randint(256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8),
                      labels=torch.randint(config.num_labels, (count,), generator=generator))  # fmt: skip


def vit_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """Timm's VisionTransformer; pictures normalised beforehand."""
    timm = need("timm")
    c: ViTConfig = setup.config
    with torch.device(setup.device):
        module = timm.models.VisionTransformer(
            img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.hidden_size, depth=c.num_hidden_layers,
            num_heads=c.num_attention_heads, mlp_ratio=c.intermediate_size / c.hidden_size, num_classes=c.num_labels, global_pool="token")
    copy_weights(ours.net, module, rules_of("vit", c, "timm"))
    batch = vit_batch(setup)
    images, labels = cast(Any, ours).normalize(batch.images.to(setup.device)), batch.labels.to(setup.device)
    return module, lambda m: nn.functional.cross_entropy(m(images), labels)


def vit_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`."""
    c: ViTConfig = setup.config
    count, patches = len(setup.lengths), (c.image_size // c.patch_size) ** 2
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, (patches + 1,) * count, causal=False)
    return trunk + 4 * 3 * c.patch_size**2 * c.hidden_size * patches * count + 6 * count * c.hidden_size * c.num_labels


# ------------------------------------------------------------------------------------------------- MAE


def mae_batch(setup: TrainSetup) -> MaskedPictureBatch:
    """Random pictures, one for each entry of `lengths`, with random masks."""
    config: MAEConfig = setup.config
    count = len(setup.lengths)
    generator = torch.Generator().manual_seed(setup.seed)
    return MaskedPictureBatch(
        counts={"masked_patches": count * (config.num_patches - config.num_visible)},
        images=torch.randint(256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8),
        noise=torch.stack([torch.randperm(config.num_patches, generator=generator) for _ in range(count)]))  # fmt: skip


def mae_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """MAE of transformers; pictures normalised beforehand, masks given as noise."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("mae", setup.config))
    batch = mae_batch(setup)
    images, noise = cast(Any, ours).normalize(batch.images.to(setup.device)), batch.noise.to(setup.device)
    return module, lambda m: m(images, noise=noise).loss


def mae_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. The encoder has the visible patches alone; only masked ones have a target."""
    c: MAEConfig = setup.config
    d, count, pixels = c.decoder, len(setup.lengths), 3 * c.patch_size**2
    encoder = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, (c.num_visible + 1,) * count, causal=False)
    decoder = transformer_flops(d.num_hidden_layers, d.hidden_size, d.intermediate_size, (c.num_patches + 1,) * count, causal=False)
    ends = 4 * pixels * c.hidden_size * c.num_visible + 6 * d.hidden_size * (
        c.hidden_size * (c.num_visible + 1) + pixels * (c.num_patches - c.num_visible))
    return encoder + decoder + count * ends


def whole_pictures(setup: TrainSetup) -> TrainSetup:
    """A ViT of the encoder's shape, as a step on every patch costs."""
    c: MAEConfig = setup.config
    shape: dict[str, Any] = {f.name: getattr(c, f.name) for f in fields(ViTConfig) if hasattr(c, f.name)}
    shape["num_labels"] = 1000
    return replace(setup, system="vit", config=ViTConfig(**shape))


# ------------------------------------------------------------------------------------------------ BEiT


def beit_batch(setup: TrainSetup) -> MaskedViewBatch:
    """Random pictures, one for each entry of `lengths`, with blockwise masks and random visual tokens: no tokenizer is timed."""
    config: BeitConfig = setup.config
    count, grid, s = len(setup.lengths), config.grid, BeitSettings()
    generator, rng = torch.Generator().manual_seed(setup.seed), np.random.default_rng(setup.seed)
    masks = [blockwise_mask(grid, s.budget(grid), s.min_block, s.min_aspect, rng).reshape(-1) for _ in range(count)]
    return MaskedViewBatch(
        counts={"masked_patches": int(np.sum(masks))}, masked=torch.from_numpy(np.stack(masks)),
        images=torch.randint(256, (count, 3, config.image_size, config.image_size), generator=generator, dtype=torch.uint8),
        codes=torch.randint(config.vocab_size, (count, grid * grid), generator=generator))  # fmt: skip


def beit_peer(setup: TrainSetup, ours: System) -> tuple[nn.Module, Loss]:
    """BEiT of transformers; pictures normalised beforehand, masks and visual tokens given."""
    transformers = need("transformers")
    with torch.device(setup.device):
        module = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**setup.config.to_dict()))
    copy_weights(ours.net, module, rules_of("beit", setup.config))
    batch = beit_batch(setup)
    assert batch.codes is not None
    inputs = on(setup.device, {"bool_masked_pos": batch.masked, "labels": batch.codes[batch.masked]})
    images = cast(Any, ours).normalize(batch.images.to(setup.device))
    return module, lambda m: m(images, **inputs).loss


def beit_flops(setup: TrainSetup) -> float:
    """Useful operations of a step; see `pairing`. Masked patches alone have a target."""
    c: BeitConfig = setup.config
    count, patches, masked = len(setup.lengths), c.grid**2, beit_batch(setup).counts["masked_patches"]
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, (patches + 1,) * count, causal=False)
    return trunk + 4 * 3 * c.patch_size**2 * c.hidden_size * patches * count + 6 * masked * c.hidden_size * c.vocab_size


# ------------------------------------------------------------------------------------------------- all


PAIRINGS: dict[str, Pairing] = {
    **masked.PAIRINGS,
    **permuted.PAIRINGS,
    **hashed.PAIRINGS,
    **tuned.PAIRINGS,
    **taught.PAIRINGS,
    **regional.PAIRINGS,
    **recurrent.PAIRINGS,
    "gpt2": Pairing(gpt2_batch, gpt2_peer, partial(rules_of, "gpt2"), gpt2_flops),
    "gpt3": Pairing(gpt2_batch, gpt3_peer, partial(rules_of, "gpt3", layout="polymodal"), gpt3_flops,
                    beside=("all layers dense", lambda setup: replace(setup, config=replace(setup.config, window_size=None)))),
    "gpt2-plain": Pairing(gpt2_batch, plain_gpt2_peer, plain.rules, gpt2_flops, "plain-torch"),
    "t5": Pairing(t5_batch, t5_peer, partial(rules_of, "t5"), t5_flops),
    "bart": Pairing(bart_batch, bart_peer, partial(rules_of, "bart"), bart_flops),
    "mass": Pairing(mass_batch, mass_peer, partial(rules_of, "mass"), mass_flops),
    "vit": Pairing(vit_batch, vit_peer, partial(rules_of, "vit", layout="timm"), vit_flops, "timm", "pictures"),
    "mae": Pairing(mae_batch, mae_peer, partial(rules_of, "mae"), mae_flops, unit="pictures",
                   beside=("ViT on whole pictures", whole_pictures)),
    "beit": Pairing(beit_batch, beit_peer, partial(rules_of, "beit"), beit_flops, unit="pictures"),
    "clip": Pairing(clip_batch, clip_peer, partial(rules_of, "clip", layout="open_clip"), clip_flops, "open_clip", "pictures"),
}


def our_loss(setup: TrainSetup) -> Loss:
    """The loss as the loop forms it: each term's sum over its count."""
    batch = PAIRINGS[setup.system].batch(setup).to(setup.device)

    def loss(system: nn.Module) -> Tensor:
        return cast(Tensor, sum(t.weight * t.total / batch.counts[t.count] for t in system(batch).terms.values()))

    return loss
