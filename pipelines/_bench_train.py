"""Training: BERT and GPT-2 beside transformers, the same weights, batch, precision, dropout and AdamW.

One step is forward, backward, fused AdamW and clearing the gradients. Both sides start from one set of
weights, N(0, 0.02) with vectors moved off their zeros and ones, carried over by the family's own rule
table, and see one batch: padded for transformers, packed for polymodal. Before the race the loss and the
whole gradient (through the rule table) are compared at dropout 0.

Useful operations of a step (the same number for both sides; padding and positions without a target are
not useful): 6 for each weight of a matrix and each token (2 forward, 4 backward); attention 12 D s^2 a
layer and sequence of s tokens, half of it where causal; the vocabulary head 6 V D a predicted token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..seq2seq import gpt
from ..shared.convert import Rule, to_theirs
from ..shared.corrupt import mask_tokens
from ..shared.loss import IGNORE
from ..shared.system import Batch, Family, System
from ..shared.tokenizer import Tokenizer
from ..text import bert
from ._bench_machine import fast_bfloat16
from .bench import Agreement, Case, Cases, Contender, Options, need, silence_peers

ModuleT = TypeVar("ModuleT", bound=nn.Module)
PEERS = ("transformers", "transformers-compiled")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Work:
    """What both sides train on: picklable, and with the seed it fixes every number."""

    config: Any
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    """bfloat16 runs under autocast, with fp32 weights."""
    seed: int = 0


@dataclass
class Trainer:
    """One side, ready to step."""

    module: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer


def update(trainer: Trainer) -> Tensor:
    """One training step."""
    loss = trainer.loss()
    loss.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def trainer(module: nn.Module, loss: Callable[[], Tensor], work: Work) -> Trainer:
    """`module` with the optimizer that both sides use."""
    module.to(work.device).train()
    return Trainer(module, under(work, loss), torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True))


def under(work: Work, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`loss` in the work's precision."""

    def compute() -> Tensor:
        with torch.autocast(work.device, work.dtype) if work.dtype != torch.float32 else nullcontext():
            return loss()

    return compute


def mean_loss(system: nn.Module, batch: Batch) -> Tensor:
    """The loss as the loop forms it: each term's sum over its count."""
    terms = system(batch).terms.values()
    return cast(Tensor, sum(t.weight * t.total / batch.counts[t.count] for t in terms))


def fresh(build: Callable[[], ModuleT], seed: int) -> ModuleT:
    """A module with the family's initialisation; vectors get noise, so that a bias or a gain in the wrong place shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def rules_of(family: Family, architecture: str, config: Any) -> Sequence[Rule]:
    """The family's table for one class of transformers."""
    return next(n for n in family.nets if n.architecture == architecture).rules(config)


def copy_weights(ours: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> None:
    """Give transformers' module our weights; what its own tying fills in may be missing, nothing else."""
    state = to_theirs(rules, ours.state_dict())
    found = theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()  # type: ignore[operator]
    assert not found.unexpected_keys, found.unexpected_keys
    untied = set(found.missing_keys) & {name for name, _ in theirs.named_parameters()}
    assert not untied, untied


def same_training(ours: Trainer, theirs: Trainer, rules: Sequence[Rule], work: Work) -> Agreement:
    """Compare loss and gradient of the first step."""
    losses = [t.loss() for t in (ours, theirs)]
    for loss in losses:
        loss.backward()
    net = ours.module.net if isinstance(ours.module, System) else ours.module
    mine = to_theirs(rules, {n: _gradient(p) for n, p in net.named_parameters(remove_duplicate=False)})
    them = {n: _gradient(p) for n, p in theirs.module.named_parameters()}
    assert mine.keys() >= them.keys(), f"no gradient for {sorted(them.keys() - mine.keys())[:5]}"
    apart = torch.stack([(mine[n] - g).square().sum() for n, g in them.items()]).sum().sqrt()
    size = torch.stack([g.square().sum() for g in them.values()]).sum().sqrt()
    loss_apart = abs(losses[0].item() - losses[1].item()) / abs(losses[1].item())
    return Agreement("loss and gradient norm of the difference, relative", max(loss_apart, (apart / size).item()), TOLERANCE[work.dtype])


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.float()


# ------------------------------------------------------------------------------------------------ BERT


def bert_batch(work: Work) -> bert.BertBatch:
    """Random words, masked as BERT masks them, packed side by side."""
    rng = np.random.default_rng(work.seed)
    examples: list[bert.BertExample] = []
    for length in work.lengths:
        ids = rng.integers(5, work.config.vocab_size, length)
        maskable = np.ones(length, dtype=bool)
        maskable[[0, -1]] = False
        noisy = mask_tokens(ids, maskable, rng, mask_id=4, vocab_size=work.config.vocab_size)
        types = (np.arange(length) > length // 2).astype(np.int64)
        examples.append(bert.BertExample(noisy.ids, types, noisy.positions, noisy.targets, int(rng.integers(2))))
    return bert.BertObjective(words("wordpiece"), bert.BertSettings(), max(work.lengths)).collate(examples)


@cache
def words(kind: str) -> Tokenizer:
    """The smallest tokenizer that an objective accepts; the batches are drawn as ids, so no text is ever read."""
    return Tokenizer.train(["ab ab"], kind, {"wordpiece": 9, "byte-bpe": 258}[kind])


def padded(rows: Tensor, lengths: tuple[int, ...], filling: int) -> Tensor:
    """Packed values [T] as rows [B, longest]."""
    return nn.utils.rnn.pad_sequence(list(rows.split(list(lengths))), batch_first=True, padding_value=filling)


def padding_mask(lengths: tuple[int, ...]) -> Tensor | None:
    """1 where there is no padding; None without padding, which lets the peer take its fastest path."""
    if len(set(lengths)) == 1:
        return None
    return padded(torch.ones(sum(lengths), dtype=torch.long), lengths, 0)


def bert_ours(work: Work, compiled: bool = False) -> Trainer:
    """Our BERT."""
    system = bert.BertSystem(fresh(partial(bert.BertForPreTraining, work.config), work.seed),
                             bert.BertObjective(words("wordpiece"), bert.BertSettings(), max(work.lengths))).to(work.device)
    batch = bert_batch(work).to(work.device)
    run = _compiled(system) if compiled else system
    return trainer(system, lambda: mean_loss(run, batch), work)


def bert_theirs(work: Work, compiled: bool = False) -> Trainer:
    """BERT of transformers: SDPA, the head on every position, as its class computes it."""
    transformers = need("transformers")
    silence_peers()
    ours = fresh(partial(bert.BertForPreTraining, work.config), work.seed)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**_reference(work.config), attn_implementation="sdpa"))
    copy_weights(ours, theirs, rules_of(bert.FAMILIES[0], "BertForPreTraining", work.config))
    del ours
    batch = bert_batch(work)
    labels = torch.full((batch.tokens,), IGNORE)
    labels[batch.target_rows] = batch.targets
    inputs = _on(work.device, {
        "input_ids": padded(batch.input_ids[0], work.lengths, 0),
        "attention_mask": padding_mask(work.lengths),
        "token_type_ids": padded(batch.token_type_ids[0], work.lengths, 0),
        "labels": padded(labels, work.lengths, IGNORE),
        "next_sentence_label": batch.next_sentence,
    })
    run = _compiled(theirs) if compiled else theirs
    return trainer(theirs, lambda: run(**inputs).loss, work)


def bert_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c = work.config
    masked = bert_batch(work).counts["masked"]
    trunk = transformer_flops(c.num_hidden_layers, c.hidden_size, c.intermediate_size, work.lengths, causal=False)
    head = 6 * masked * c.hidden_size * (c.vocab_size + c.hidden_size)
    return trunk + head + 6 * len(work.lengths) * c.hidden_size**2


def bert_agreement(work: Work) -> Agreement:
    """Both sides' loss and gradient without dropout, which draws differently on each."""
    still = replace(work, config=replace(work.config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    return same_training(bert_ours(still), bert_theirs(still), rules_of(bert.FAMILIES[0], "BertForPreTraining", work.config), work)


# ----------------------------------------------------------------------------------------------- GPT-2


def causal_batch(work: Work) -> gpt.CausalBatch:
    """Random words; every token but a sequence's first is predicted from those before it."""
    rng = np.random.default_rng(work.seed)
    ids = torch.from_numpy(rng.integers(0, work.config.vocab_size, sum(work.lengths)))
    targets = torch.cat([torch.cat([row[1:], torch.tensor([IGNORE])]) for row in ids.split(list(work.lengths))])
    positions = torch.cat([torch.arange(n) for n in work.lengths])
    return gpt.CausalBatch(counts={"targets": sum(work.lengths) - len(work.lengths)}, tokens=sum(work.lengths), input_ids=ids[None],
                           position_ids=positions[None], lengths=work.lengths, targets=targets)


def gpt2_ours(work: Work, compiled: bool = False) -> Trainer:
    """Our GPT-2."""
    system = gpt.GPT2System(fresh(partial(gpt.GPT2LMHeadModel, work.config), work.seed),
                            gpt.CausalObjective(words("byte-bpe"), max(work.lengths))).to(work.device)
    batch = causal_batch(work).to(work.device)
    run = _compiled(system) if compiled else system
    return trainer(system, lambda: mean_loss(run, batch), work)


def gpt2_theirs(work: Work, compiled: bool = False) -> Trainer:
    """GPT-2 of transformers: SDPA; it shifts the labels itself."""
    transformers = need("transformers")
    silence_peers()
    ours = fresh(partial(gpt.GPT2LMHeadModel, work.config), work.seed)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**_reference(work.config), attn_implementation="sdpa"))
    copy_weights(ours, theirs, rules_of(gpt.FAMILIES[0], "GPT2LMHeadModel", work.config))
    del ours
    ids = causal_batch(work).input_ids[0]
    inputs = _on(work.device, {"input_ids": padded(ids, work.lengths, 0), "attention_mask": padding_mask(work.lengths),
                               "labels": padded(ids, work.lengths, IGNORE)})
    run = _compiled(theirs) if compiled else theirs
    return trainer(theirs, lambda: run(**inputs, use_cache=False).loss, work)


def gpt2_flops(work: Work) -> float:
    """Useful operations of a step; see the module."""
    c = work.config
    trunk = transformer_flops(c.n_layer, c.n_embd, c.n_inner or 4 * c.n_embd, work.lengths, causal=True)
    return trunk + 6 * (sum(work.lengths) - len(work.lengths)) * c.n_embd * c.vocab_size


def gpt2_agreement(work: Work) -> Agreement:
    """Both sides' loss and gradient without dropout."""
    still = replace(work, config=replace(work.config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    return same_training(gpt2_ours(still), gpt2_theirs(still), rules_of(gpt.FAMILIES[0], "GPT2LMHeadModel", work.config), work)


# ------------------------------------------------------------------------------------------- the cases


def transformer_flops(layers: int, hidden: int, intermediate: int, lengths: tuple[int, ...], *, causal: bool) -> float:
    """Useful operations, forward and backward, of a stack over sequences of these lengths; see the module."""
    weights = layers * (4 * hidden**2 + 2 * hidden * intermediate)
    attention = layers * hidden * sum(s * s for s in lengths) * (6 if causal else 12)
    return 6 * weights * sum(lengths) + attention


def natural_lengths(count: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    """Log-normal lengths, about 116 tokens on average and at most `longest`: a simulated corpus of short documents."""
    drawn = np.exp(np.random.default_rng(seed).normal(4.4, 0.85, count))
    return tuple(int(n) for n in np.clip(drawn, 8, longest))


def sides(ours: Callable[..., Trainer], theirs: Callable[..., Trainer], work: Work, peer: str) -> tuple[Contender, ...]:
    """Both sides; beside a compiled peer, also polymodal compiled."""
    mine = Contender("polymodal", partial(ours, work), update)
    if peer.endswith("-compiled"):
        compiled = Contender("polymodal compiled", partial(ours, work, True), update)
        return mine, compiled, Contender(peer.replace("-", " "), partial(theirs, work, True), update)
    return mine, Contender(peer, partial(theirs, work), update)


def training_case(name: str, kind: str, work: Work, peer: str) -> Case:
    """A case of `bert` or `gpt2` training."""
    ours, theirs, flops, agree = {
        "bert": (bert_ours, bert_theirs, bert_flops, bert_agreement),
        "gpt2": (gpt2_ours, gpt2_theirs, gpt2_flops, gpt2_agreement),
    }[kind]
    longest, total = max(work.lengths), sum(work.lengths)
    about = f"one update, {len(work.lengths)} sequences, {total} tokens, longest {longest}, {str(work.dtype).removeprefix('torch.')}"
    if total < longest * len(work.lengths):
        about += f"; padded rows would be {total / longest / len(work.lengths):.0%} full"
    return Case(name, about, "tokens", total, sides(ours, theirs, work, peer), partial(agree, work), flops(work))


def cases(options: Options) -> Cases:
    """BERT on full rows, on natural lengths and with dropout; GPT-2 on full rows. bf16 too where the hardware has it."""
    peer = options.peer("train", PEERS)
    quick = options.quick
    still: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    small: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 300} if quick else {}
    layers, rows, length = (2, 3, 16) if quick else (4, 4, 512)
    encoder = bert.BertConfig(num_hidden_layers=layers, max_position_embeddings=length, **small, **still)
    noisy = bert.BertConfig(num_hidden_layers=layers, max_position_embeddings=length, **small)
    narrow: dict[str, Any] = {"n_embd": 32, "n_head": 2, "vocab_size": 300} if quick else {}
    decoder = gpt.GPT2Config(n_layer=layers, n_positions=length, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **narrow)
    full, natural = (length,) * rows, natural_lengths(rows * 4, length)
    for dtype in (torch.float32, torch.bfloat16) if fast_bfloat16(options.device) else (torch.float32,):
        kind = " bf16" if dtype == torch.bfloat16 else ""
        base = Work(encoder, full, options.device, dtype)
        yield training_case(f"BERT, full rows{kind}", "bert", base, peer)
        yield training_case(f"BERT, natural lengths{kind}", "bert", replace(base, lengths=natural), peer)
        yield training_case(f"BERT, full rows, dropout 0.1{kind}", "bert", replace(base, config=noisy), peer)
        yield training_case(f"GPT-2, full rows{kind}", "gpt2", replace(base, config=decoder), peer)


def _compiled(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module))


def _reference(config: Any) -> dict[str, Any]:
    """The config as transformers' own class takes it."""
    return {k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id")}


def _on(device: str, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in inputs.items() if v is not None}
