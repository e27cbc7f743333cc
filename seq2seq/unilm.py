"""UniLM. Dong, Yang, Wang, Wei, Liu, Wang, Gao, Zhou and Hon, "Unified Language Model Pre-training for Natural Language
Understanding and Generation", 2019. https://arxiv.org/abs/1905.03197

One network, BERT's, fills hidden tokens in under four masks, of which each update has one: in both directions, from the left, from the
right, and behind a text that is seen whole. So it understands as BERT does, and writes: [MASK] stands behind what is written, and what it
would be comes next.

    [CLS] x1 x2 [SEP] y1 [MASK]        y1 is read where it stands, as training has it, and its keys and values are kept;
                      y1  y2  [MASK]   what [MASK] left is forgotten as soon as y2 is known

Faithful: networks and outputs as in transformers' `Bert*` classes, with six segments, and exported as theirs; a run may begin with BERT's
weights, as the paper's (section 2.4): a task's first and second segment begin with BERT's two (microsoft/unilm); tasks, segments and masks
as in `cloze`; an update has one task, in shares of 1/3, 1/3, 1/6 and 1/6 (section 2.3); next sentences in the bidirectional task alone;
15 % of the tokens, of the draws 80 % one token and 20 % two or three, then 80/10/10 (section 2.2). Fine-tuning to write: 70 % of the
target's tokens are hidden, its [SEP] among them, and none of the text's; label smoothing 0.1 (section 3.1; microsoft/unilm).
Understanding: the tasks of every encoder, with the bidirectional segments (section 2.5).

Deviations, each with its reason:
* Shares are exact in each cycle of updates, where the paper draws the task of a batch.
* Pairs, sentences and rows are cut as in `bert`; the two segments of `seq2seq` are cut by the same rules and always follow each other. The
  published code has no loader for pretraining: what it has for fine-tuning says n-grams, segments and the [SEP] that may be hidden.
* Sequences are packed side by side without padding. Under the sequence-to-sequence mask nothing is computed for what it hides
  (`shared.attention.choose.Prefixes`).
* n-grams that would touch a chosen one are skipped, and the last one is shortened to the number that is wanted; the published code lets
  them overlap and throws some of the tokens away.
* What label smoothing takes is spread over the whole vocabulary; the published code leaves out the token itself and padding.
* A text that is read to be answered is never hidden in fine-tuning (the published code can, and does not by default).
* GELU is the exact one, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..shared.attention.cache import KVCache
from ..shared.attention.mask import Mask
from ..shared.decoder import ConditionedDecoder, DecoderInfo
from ..shared.encoder import Encoder, EncoderOutput
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, transformers
from ..shared.generation_config import defaults_files, read_defaults
from ..shared.packed import starts
from ..shared.system import Preview, Step, Term, named
from ..text import bert
from ..text.bert import BertConfig, BertForMaskedLM, BertForPreTraining, BertSystem, PairedWords
from ..text.encoder_tasks import encoder_tasks
from ..text.framing import longest
from ..text.masking import MaskedLMOutput, MaskedLMSystem, MaskedWords
from .cloze import (
    BIDIRECTIONAL,
    SEGMENTS,
    SOURCE,
    TARGET,
    TASKS,
    AnswerObjective,
    AnswerSettings,
    ClozeBatch,
    ClozeObjective,
    ClozeSettings,
)
from .generation.generate import generate_ids
from .teacher_forcing import padded, smoothed_sum


@dataclass(frozen=True, kw_only=True)
class UnilmConfig(BertConfig):
    """transformers' `BertConfig` with the cased vocabulary and six segments, and the tokens that writing needs."""

    vocab_size: int = 28996
    """Rows of the word table."""
    type_vocab_size: int = SEGMENTS
    """Rows of the token-type table: the segments of all tasks."""
    sep_token_id: int = 102
    """Id of [SEP], which ends a text and what is written."""
    mask_token_id: int = 103
    """Id of [MASK], which stands where the next token is to be written."""

    NOT_NEGATIVE = (*BertConfig.NOT_NEGATIVE, "sep_token_id", "mask_token_id")


SIZES = {size: bert.SIZES[size] for size in ("tiny", "base", "large")}


# ---------------------------------------------------------------------------------------------- networks


class UnilmForConditionalGeneration(MaskedWords):
    """The trunk without pooler and the masked-language-model head: writes a text behind another one."""

    config: UnilmConfig

    def __init__(self, config: UnilmConfig) -> None:
        super().__init__(Encoder(config, pooler=False), config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
    ) -> MaskedLMOutput:
        """Map texts and what stands behind them to logits of the latter's tokens [B, T, V], of which some may be [MASK].

        Args:
            input_ids: texts [B, S], with [CLS] and [SEP].
            attention_mask: [B, S], nonzero where there is not padding, on either side.
            decoder_input_ids: [B, T]; by default [MASK] alone: the logits of the first token.
            decoder_attention_mask: [B, T]; padding on the right needs none.
            output_hidden_states: keep the output of every block, for texts and targets together.
        """
        behind = self._masks(input_ids) if decoder_input_ids is None else decoder_input_ids
        keep = torch.cat([_kept(attention_mask, input_ids), _kept(decoder_attention_mask, behind)], dim=1)
        kinds = torch.cat([torch.full_like(input_ids, SOURCE), torch.full_like(behind, TARGET)], dim=1)
        length = input_ids.shape[1]
        mask = Mask(causal=True, prefix=input_ids.new_full((len(input_ids),), length), keep=keep)
        out = self.trunk(torch.cat([input_ids, behind], dim=1), None, kinds, positions_of(keep), mask=mask,
                         output_hidden_states=output_hidden_states)
        return MaskedLMOutput(self.head(out.last_hidden_state[:, length:]), out.hidden_states)

    def _masks(self, ids: Tensor) -> Tensor:
        """One [MASK] for each row of ids."""
        return ids.new_full((len(ids), 1), self.config.mask_token_id)

    # What `generate` asks of an encoder-decoder.

    @property
    def decoder_info(self) -> DecoderInfo:
        """Where generating ends, and how long a text and its answer may be together."""
        c = self.config
        return DecoderInfo(max_positions=c.longest_input, num_layers=c.num_hidden_layers, eos_token_id=c.sep_token_id,
                           pad_token_id=c.pad_token_id, shares_positions=True)

    def decoder_for(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> AnswerDecoder:
        """Read texts [B, S] for generating; `attention_mask` [B, S] is nonzero where there is not padding."""
        return AnswerDecoder(self, input_ids, attention_mask)

    def write_next(self, input_ids: Tensor, position_ids: Tensor, keep: Tensor | None, cache: KVCache) -> Tensor:
        """Logits [R, V] of the token behind `input_ids` [R, S], which stand behind what the cache holds; it then holds these, too.

        Args:
            input_ids: the last token of the text (at position 0 of the cache) and what has been written, or the newest of these.
            position_ids: [R, S], counted from the beginning of the text.
            keep: [R, Lk], False at padding of the texts; Lk is what precedes the cache, what it holds, S, and 1.
            cache: of keys and values, behind those of the texts without their last tokens.
        """
        begin = cache.length
        ids = torch.cat([input_ids, self._masks(input_ids)], dim=1)
        positions = torch.cat([position_ids, position_ids[:, -1:] + 1], dim=1)
        kinds = torch.full_like(ids, TARGET)
        if not begin:
            kinds[:, 0] = SOURCE
        mask = Mask(causal=True, keep=keep, offset=cache.lead)
        x = self.trunk.stack(self.trunk.embed(ids, positions, kinds), mask, cache=cache)
        cache.rewind(begin + input_ids.shape[1])  # [MASK] was not written
        return self.head(x[:, -1])


class AnswerDecoder(ConditionedDecoder):
    """UniLM behind texts that it has read: each token is read where it stands, and [MASK] behind it.

    Texts are kept as keys and values. The last token of each, its [SEP], is read again as the first of what is written: there it sees
    what it sees as the end of the text.

    Args:
        net: the network.
        input_ids: texts [B, S].
        attention_mask: [B, S], nonzero where there is not padding, on either side.
    """

    def __init__(self, net: UnilmForConditionalGeneration, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        super().__init__()
        config = net.config
        keep = _kept(attention_mask, input_ids)
        order = keep.long().argsort(dim=1, stable=True)  # padding to the left
        ids, keep = input_ids.gather(1, order), keep.gather(1, order)
        width = ids.shape[1]
        if width >= config.longest_input:
            raise UserError(f"the text has {width} tokens, and the model {config.longest_input} positions for a text and its answer: "
                            f"shorten the text to at most {config.longest_input - 1} tokens")
        self.net = net
        self.start = ids[:, -1:]
        self.begins = keep.sum(1, keepdim=True) - 1
        """int64 [B, 1]: the position of each text's last token."""
        self.decoder_info = replace(net.decoder_info, max_positions=config.longest_input - width + 1)
        cache = KVCache(config.num_hidden_layers, width)
        x = net.trunk.embed(ids, positions_of(keep), torch.full_like(ids, SOURCE))
        net.trunk.stack(x, Mask(keep=keep), cache=cache)
        assert cache.buffer is not None
        self.texts = cache.buffer[:, :, :, :-1]
        self.keep = None if bool(keep.all()) else keep[:, :-1]

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [R, T] after what the cache holds; logits [R, V] of the id that follows."""
        if cache.buffer is None:
            copies = len(input_ids) // self.texts.shape[1]
            cache.precede(self.texts.repeat_interleave(copies, 1) if copies > 1 else self.texts, spare=1)
        copies = len(input_ids) // len(self.begins)
        begins = self.begins.repeat_interleave(copies, 0)
        keep = None
        if self.keep is not None:
            behind = cache.length + input_ids.shape[1] + 1
            keep = torch.nn.functional.pad(self.keep.repeat_interleave(copies, 0), (0, behind), value=True)
        return self.net.write_next(input_ids, begins + position_ids, keep, cache)


def _kept(attention_mask: Tensor | None, ids: Tensor) -> Tensor:
    """Where there is not padding, bool [B, S]."""
    return torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()


def positions_of(keep: Tensor) -> Tensor:
    """Positions [B, S] of rows with padding anywhere, counted without it."""
    return (keep.long().cumsum(1) - 1).clamp(min=0)


# ------------------------------------------------------------------------------------------ the loss side


def read(net: PairedWords | MaskedWords, batch: ClozeBatch) -> EncoderOutput:
    """What the trunk makes of a batch under its mask."""
    return net.trunk(batch.input_ids, None, batch.token_type_ids, batch.position_ids, lengths=batch.lengths, mask=batch.mask)


class UnilmSystem(BertSystem):
    """UniLM's pretraining: hidden tokens under the mask of the update's task, and next sentences in the bidirectional one."""

    def read(self, batch: ClozeBatch) -> EncoderOutput:  # type: ignore[override]
        """What the trunk makes of a batch."""
        return read(self.net, batch)

    def forward(self, batch: ClozeBatch, carry: Any = None) -> Step:  # type: ignore[override]
        """The losses as sums over their targets; where no sequence has a label, the second head runs on no rows (`Objective.turns`)."""
        if len(batch.next_sentence) or not isinstance(self.net, PairedWords):
            return super().forward(batch)
        out = self.read(batch)
        step = self.predict(out, batch)
        step.terms["mlm"].total = step.terms["mlm"].total + self.net.judge(out.pooled[:0]).sum()
        return step

    def measured(self) -> tuple[str, ...]:
        """See `System.measured`."""
        measured = super().measured()
        words = [name for name in measured if not name.startswith(self.pair_term)]
        return tuple(named(task, name) for task in self.objective.turns
                     for name in ("loss", *(measured if task == BIDIRECTIONAL else words)))


class UnilmAnswers(MaskedLMSystem[UnilmForConditionalGeneration, AnswerObjective]):
    """Fine-tuning to write: the hidden tokens of targets behind their texts.

    Args:
        net: the network.
        objective: makes the texts and targets.
        label_smoothing: share of a token's probability that is spread over the vocabulary while training.
    """

    def __init__(self, net: UnilmForConditionalGeneration, objective: AnswerObjective, label_smoothing: float) -> None:
        super().__init__(net, objective)
        self.label_smoothing = label_smoothing

    def read(self, batch: ClozeBatch) -> EncoderOutput:  # type: ignore[override]
        """What the trunk makes of a batch."""
        return read(self.net, batch)

    def predict(self, out: EncoderOutput, batch: ClozeBatch) -> Step:  # type: ignore[override]
        """The loss of the hidden tokens as a sum, smoothed while training."""
        if not self.training or not self.label_smoothing:
            return super().predict(out, batch)
        logits = self.net.head(out.last_hidden_state[0, batch.target_rows])
        return Step({"mlm": Term(smoothed_sum(logits, batch.targets, self.label_smoothing), "masked", labels=batch.targets)})

    @torch.no_grad()
    def preview(self, batch: ClozeBatch, limit: int = 4) -> list[Preview]:  # type: ignore[override]
        """Texts, their targets, and what the network writes, greedily."""
        tokenizer, config = self.objective.tokenizer, self.net.config
        whole = batch.input_ids[0].clone()
        whole[batch.target_rows] = batch.targets
        firsts = batch.mask.prefix_lengths or ()
        places = list(zip(starts(batch.lengths), firsts, batch.lengths))[:limit]
        texts, targets = ([whole[s:s + n] for s, n, _ in places], [whole[s + n:s + m] for s, n, m in places])
        ids, keep = padded(torch.cat(texts)[None], [len(text) for text in texts], config.pad_token_id or 0)
        new = min(max(map(len, targets)), config.longest_input - ids.shape[1])
        written = generate_ids(self.net, ids, keep, max_new_tokens=new)[:, 1:]
        return [Preview(tuple((name, tokenizer.decode(part.tolist())) for name, part in zip(("text", "target", "written"), parts)))
                for parts in zip(texts, targets, written)]


# --------------------------------------------------------------------------------------------- the entry


def from_bert(config: BertConfig) -> UnilmConfig:
    """The config of a network that begins with BERT's weights; the special ids come from the tokenizer (`special`)."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "extra"}
    return replace(UnilmConfig(**values), type_vocab_size=SEGMENTS)


def with_segments(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """BERT's weights with a row for each segment: that of BERT's first or second one, as the segment is the first or second of its task."""
    name = "trunk.embed.token_type.weight"
    place = {segment: number for task in TASKS.values() for number, segment in enumerate(task.segments)}
    rows = [min(place[segment], len(tensors[name]) - 1) for segment in range(SEGMENTS)]
    return {**tensors, name: tensors[name][rows]}


def _check(config: UnilmConfig) -> None:
    if config.type_vocab_size < SEGMENTS:
        raise UserError(f"model.type_vocab_size is {config.type_vocab_size}, expected at least the {SEGMENTS} segments of UniLM's tasks")


def create(config: UnilmConfig, settings: ClozeSettings, context: Context) -> UnilmSystem:
    """Build UniLM with randomly initialized weights and its objective."""
    _check(config)
    length = longest(config, settings.max_length)
    objective = context.objective("unilm", lambda tokenizer: ClozeObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return UnilmSystem(BertForPreTraining(config) if settings.bidirectional else BertForMaskedLM(config), objective)


def create_answers(config: UnilmConfig, settings: AnswerSettings, context: Context) -> UnilmAnswers:
    """Build UniLM for writing texts, with randomly initialized weights."""
    _check(config)
    length = longest(config, settings.max_length)
    objective = context.objective("text2text", lambda tokenizer: AnswerObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return UnilmAnswers(UnilmForConditionalGeneration(config), objective, settings.label_smoothing)


def adapt(config: UnilmConfig, context: Context) -> UnilmConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    return special(bert.adapt(config, context), context)


def special(config: UnilmConfig, context: Context) -> UnilmConfig:
    """Take the ids of [SEP] and [MASK] from the tokenizer."""
    if context.tokenizer is None:
        return config
    _, sep, mask = context.tokenizer.need("masking", "cls", "sep", "mask")
    return replace(config, sep_token_id=sep, mask_token_id=mask)


def _ours(task: Task) -> Task:
    """A task whose network may begin with the weights of a BERT, which has no special ids."""
    return replace(task, adapt=lambda config, context: special(task.adapt(config, context), context))


def _as_bert(net: Net) -> Net:
    """One of BERT's networks, which transformers may read as that; the id of [MASK] in config.json says that it is UniLM's."""
    def write(model: Any) -> Mapping[str, Any]:
        return {**model.config.to_dict(), "model_type": "bert", "architectures": [net.architecture]}

    def recognises(record: Mapping[str, Any]) -> bool:
        segments = record.get("type_vocab_size")
        return (record.get("model_type") == "bert" and "mask_token_id" in record and isinstance(segments, int) and segments >= SEGMENTS
                and net.architecture in (record.get("architectures") or ()))

    (theirs,) = net.formats
    return Net(net.architecture, net.build, replace(theirs, write=write, recognises=recognises))


_BERT = bert.nets("Bert")
NETS = (
    *map(_as_bert, _BERT),
    Net("UnilmForConditionalGeneration", UnilmForConditionalGeneration,
        transformers(next(net for net in _BERT if net.architecture == "BertForMaskedLM").format("transformers").rules,
                     files=defaults_files, finish=read_defaults)),
)

CARD = Card(
    title="UniLM",
    paper="Dong, Yang, Wang, Wei, Liu, Wang, Gao, Zhou, Hon. Unified Language Model Pre-training for Natural Language Understanding and "
          "Generation",
    year=2019,
    url="https://arxiv.org/abs/1905.03197",
    equation=r"\mathcal{L}_u = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta\big(x_i \mid \{\tilde{x}_j : j \in V_{t(u)}(i)\}\big)",
    symbols="M are the 15 % of the tokens that are to be predicted; in the input x with a tilde, 80 % of them are masked, 10 % replaced "
            "and 10 % kept. V(i) is what token i sees under the task t of update u. In the bidirectional task, BERT's loss of next "
            "sentences is added. The mean is over the whole global batch.",
    masks={"Bidirectional": Mask(lengths=(9, 7)), "Left to right": Mask(causal=True, lengths=(9, 7)),
           "Right to left": Mask(window=(0, 16), lengths=(9, 7)),
           "Sequence to sequence": Mask(causal=True, lengths=(9, 7), prefix_lengths=(5, 4))},
    reference="transformers.BertForPreTraining",
)

FAMILIES = (
    Family(
        name="unilm",
        card=CARD,
        config=UnilmConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=_ours(Task("hidden words under four masks", ClozeSettings, create)),
        tasks=tuple(map(_ours, (
            Task("a text from a text", AnswerSettings, create_answers, "text2text", architecture="UnilmForConditionalGeneration"),
            *encoder_tasks(NETS)))),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "trunk.pooler"),
        starts={"bert": Adopt(with_segments, from_bert)},
        model_type="unilm",
        vocabulary=Vocabulary("wordpiece", "bert"),
    ),
)
