"""BigBird. Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang and Ahmed, "Big Bird: Transformers for Longer
Sequences", 2020. https://arxiv.org/abs/2007.14062

BERT for long texts: a block of tokens sees the blocks beside it, the first and the last one, and a few at random. Seven blocks, one of
them at random (r):

    1 1 1 1 1 1 1      the first block sees all
    1 1 1 . r . 1
    1 1 1 1 . r 1
    1 r 1 1 1 . 1      itself, the blocks beside it, the first and the last, one other
    ...
    1 1 1 1 1 1 1      the last block sees all

Faithful: networks and outputs as in transformers' `BigBird*` classes, in training and not. This is the paper's ITC (section 2): the
global tokens are those of the first and the last block of the text itself. Texts of up to 5 + 2 `num_random_blocks` blocks are read with
full attention, as in the paper's code and transformers. The objective is RoBERTa's, from whose weights the paper's networks begin
(appendix E.1): positions are repeated until there are enough, and the network computes what the shorter one does on texts that short.

Which blocks are random, `random_layout` says:
* `paper`: drawn once for each layer and number of blocks, of all that are not seen anyway, for all heads the same (the graph of section
  2), in training and out of it. Networks with it have a format of their own, as transformers would compute something else.
* `transformers`, for the weights that library writes: for each head, as its code draws them with the layer's number as seed, of the first
  blocks of the text alone, and for texts of 1024, 3072 and 4096 tokens by another rule, by which a block may be counted twice. Out of
  training that library sees no random blocks, but the first one `num_random_blocks` times more; so do these networks.

Deviations, each with its reason:
* ETC is left out, as in transformers: global tokens beside the text's, with relative positions and a loss of their own.
* Texts are packed side by side without padding, and no text is padded to a multiple of a block: each sees only itself, and its last block
  may be shorter. In a padded batch the blocks are those of the longest text, as in transformers.
* transformers goes over to full attention for good once it has read a short text; here each text is read as its length says.
* `use_bias` off, `rescale_embeddings` on, and networks that write (BigBirdPegasus) are left out: no published encoder has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..shared.attention.mask import Layout, Mask
from ..shared.attention.plan import outside_graphs
from ..shared.block import FeedForward, LayerNorm, Residual
from ..shared.convert import Ignore, Rule, affine, prefixed
from ..shared.embed import normal_
from ..shared.encoder import LEGACY, Encoder, EncoderConfig, EncoderOutput, encoder_rules
from ..shared.errors import UserError
from ..shared.family import Adopt, Card, Context, Family, Net, Task, Vocabulary, or_our_own, transformers
from . import _random_blocks, bert, masking, tasks
from .bert import BertConfig, BertForPreTraining
from .encoder_tasks import encoder_tasks
from .framing import longest
from .longformer import first, marks, repeated_positions, with_separator
from .masking import MaskedLM, MaskedLMSystem, MaskingSettings
from .roberta import RobertaObjective

LAYOUTS = ("transformers", "paper")
ATTENTIONS = ("block_sparse", "original_full")


@dataclass(frozen=True, kw_only=True)
class BigBirdConfig(BertConfig):
    """transformers' `BigBirdConfig`, with its defaults, which are the published base model's."""

    vocab_size: int = 50358
    """Rows of the word table."""
    hidden_act: str = "gelu_new"
    """Activation of the feed-forward layer and of the heads; `gelu_new` is the tanh form."""
    max_position_embeddings: int = 4096
    """Rows of the position table: the longest sequence."""
    sep_token_id: int | None = 66
    """Ends a question: no answer is looked for before it."""
    attention_type: str = "block_sparse"
    """Or `original_full`: every token sees all."""
    block_size: int = 64
    """Tokens of a block."""
    num_random_blocks: int = 3
    """Blocks at random that a block sees."""
    random_layout: str = "transformers"
    """Which these are: see the file. `paper` for networks that are trained here."""

    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = MappingProxyType({
        **BertConfig.FIXED, "use_bias": (True,), "rescale_embeddings": (False,)})
    AT_LEAST_ONE = (*BertConfig.AT_LEAST_ONE, "block_size")
    NOT_NEGATIVE = (*BertConfig.NOT_NEGATIVE, "num_random_blocks")

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        found = super().problems()
        for name, known in (("attention_type", ATTENTIONS), ("random_layout", LAYOUTS)):
            if getattr(self, name) not in known:
                found.append(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        return found

    @property
    def longest_full(self) -> int:
        """Tokens of the longest text whose tokens see all."""
        if self.attention_type == "original_full":
            return self.max_position_embeddings
        return (_random_blocks.FIXED + 2 * self.num_random_blocks) * self.block_size

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json; that which transformers does not know where it says something."""
        record = super().to_dict()
        if self.random_layout == "transformers":
            del record["random_layout"]
        return record


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512,
             "max_position_embeddings": 1024, "block_size": 16, "random_layout": "paper"},
    "base": {"random_layout": "paper"},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "random_layout": "paper"},
}
"""`base` and `large` are the paper's."""


# ---------------------------------------------------------------------------------------------- networks


class BigBirdModel(Encoder):
    """BERT's trunk with block tables.

    Args:
        config: the sizes.
        pooler: whether to read a summary off the first token. Without, the pooler that transformers' files hold is kept, and not trained.
    """

    config: BigBirdConfig

    def __init__(self, config: BigBirdConfig, *, pooler: bool = True) -> None:
        super().__init__(config)
        self.reads_summary = pooler
        if self.pooler is not None:
            self.pooler.requires_grad_(pooler)

    def mask(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: tuple[int, ...] | None) -> Mask | Sequence[Mask]:
        """See `Encoder.mask`."""
        longest = input_ids.shape[1] if lengths is None else max(lengths, default=0)
        if longest <= self.config.longest_full:
            return super().mask(input_ids, attention_mask, lengths)
        return self.tables(input_ids.shape[1] if lengths is None else lengths, attention_mask)

    @outside_graphs
    def tables(self, lengths: int | tuple[int, ...], attention_mask: Tensor | None) -> tuple[Mask, ...]:
        """What each layer sees of a padded batch, or of packed texts; layers of one table have the same value."""
        c, made = self.config, dict[tuple[Layout | None, ...], Mask]()
        keep = None if attention_mask is None else attention_mask.bool()
        masks: list[Mask] = []
        for layer in range(c.num_hidden_layers):
            found = tuple(self.layout(n, layer) for n in ((lengths,) if isinstance(lengths, int) else lengths))
            mask = Mask(keep=keep, blocks=found[0]) if isinstance(lengths, int) else Mask(lengths=lengths, document_blocks=found)
            masks.append(made.setdefault(found, mask))
        return tuple(masks)

    def layout(self, length: int, layer: int) -> Layout | None:
        """The block table of a text in a layer; None where its tokens see all."""
        c = self.config
        if length <= c.longest_full:
            return None
        shape = (-(-length // c.block_size), c.block_size, c.num_random_blocks)
        if c.random_layout == "paper":
            return _random_blocks.paper(*shape, layer)
        if not self.training:
            return _random_blocks.transformers_evaluating(*shape)
        return _random_blocks.transformers_training(*shape, layer, c.num_attention_heads, c.max_position_embeddings)

    def forward(self, *arguments: Any, **named: Any) -> EncoderOutput:
        """See `Encoder.forward`."""
        out = super().forward(*arguments, **named)
        return out if self.reads_summary else replace(out, pooler_output=None)


class BigBirdForMaskedLM(MaskedLM):
    """The trunk and the masked-language-model head."""

    def __init__(self, config: BigBirdConfig) -> None:
        super().__init__(BigBirdModel(config, pooler=False), config)


class BigBirdForQuestionAnswering(tasks.QuestionAnswering):
    """Start and end of the answer behind the question, read off the tokens through a feed-forward layer of its own."""

    config: BigBirdConfig

    def __init__(self, config: BigBirdConfig) -> None:
        trunk = BigBirdModel(config)
        trunk.pooler = None
        super().__init__(trunk, config, config.hidden_dropout_prob)
        self.reading = FeedForward(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.residual = Residual(LayerNorm(config.hidden_size, eps=config.layer_norm_eps), "post", config.hidden_dropout_prob)
        normal_(self.reading, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        output_hidden_states: bool = False,
        **more: Any,
    ) -> tasks.QuestionAnsweringOutput:
        """Map ids [B, S] to start and end logits [B, S]; the question's are out of the way, but the first. See `Encoder.forward`."""
        asked = marks(_question, input_ids, lengths, self.config.sep_token_id)
        if token_type_ids is None:
            token_type_ids = (~asked).long().clamp(max=self.config.type_vocab_size - 1)
        out: EncoderOutput = self.trunk(input_ids, attention_mask, token_type_ids, position_ids,
                                        lengths=lengths, output_hidden_states=output_hidden_states, **more)
        read = self.residual(out.last_hidden_state, lambda x: self.reading(self.dropout(x)))
        hidden = asked & ~marks(first, input_ids, lengths, None)
        start, end = (self.classifier(read) - hidden[..., None] * 1e6).unbind(-1)
        return tasks.QuestionAnsweringOutput(start, end, out.hidden_states)


def _question(ids: Tensor, sep: int) -> Tensor:
    """What stands up to the first separator; the first token where there is none."""
    return torch.arange(ids.shape[1], device=ids.device) <= (ids == sep).int().argmax(1, keepdim=True)


# ------------------------------------------------------------------------------------------ pretraining


class BigBirdSystem(MaskedLMSystem[BigBirdForMaskedLM, RobertaObjective]):
    """BigBird's pretraining: masked words of long texts."""


def create(config: BigBirdConfig, settings: MaskingSettings, context: Context) -> BigBirdSystem:
    """Build BigBird with randomly initialized weights and its objective."""
    length = longest(config, settings.max_length)
    objective = context.objective("bigbird", lambda tokenizer: RobertaObjective(tokenizer.fitting(config.vocab_size), settings, length))
    return BigBirdSystem(BigBirdForMaskedLM(config), objective)


def _adapt(config: BigBirdConfig, context: Context) -> BigBirdConfig:
    return with_separator(bert.adapt(config, context), context)


def _told(task: Task) -> Task:
    """A task whose network knows the separator."""
    return replace(task, adapt=lambda config, context: with_separator(task.adapt(config, context), context))


# ------------------------------------------------------------------------------------------- warm starts


def from_bert(config: EncoderConfig, *, positions: int = 4096) -> BigBirdConfig:
    """The config of a network that begins with BERT's weights."""
    known = {f.name for f in fields(BigBirdConfig)} - {"extra", "max_position_embeddings"}
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name in known}
    return BigBirdConfig(**values, max_position_embeddings=positions, random_layout="paper")


def from_roberta(config: EncoderConfig) -> BigBirdConfig:
    """The same of a RoBERTa, whose head has the exact GELU whatever the trunk has."""
    if config.hidden_act != "gelu":
        raise UserError(f"a RoBERTa with hidden_act {config.hidden_act} has another activation in its head for masked words, gelu; BigBird "
                        "has one for both: start from one with gelu")
    return from_bert(config)


def _after_padding(tensors: Mapping[str, Tensor], net: Any) -> Mapping[str, Tensor]:
    """RoBERTa's weights, whose positions begin behind the id of padding."""
    return repeated_positions(tensors, net, (net.config.pad_token_id or 0) + 1)


# ------------------------------------------------------------------------------------------------ the entry


def _trunk(config: BigBirdConfig, pooler: bool = True, above: str = "bert.") -> tuple[Rule, ...]:
    rules = (*encoder_rules(config, pooler=False), *(affine("pooler", "pooler.dense") if pooler else ()))
    return (*(prefixed(rules, above, "trunk.") if above else rules), *LEGACY)


_HEAD = masking.head_rules("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
                           "cls.predictions.decoder", "bert.embeddings.word_embeddings.weight")


def _net(name: str, build: Callable[[BigBirdConfig], nn.Module], *rules: Rule, pooler: bool = True) -> Net:
    return Net(f"BigBird{name}", build, transformers(lambda c: (*_trunk(c, pooler), *rules)))


NETS = tuple(or_our_own(net, BigBirdConfig, "polymodal-bigbird", lambda c: "" if c.random_layout == "transformers" else
                        "random blocks as in the paper") for net in (
    _net("ForMaskedLM", BigBirdForMaskedLM, *_HEAD, Ignore(r"cls\.seq_relationship\..*")),
    _net("ForPreTraining", lambda c: BertForPreTraining(c, BigBirdModel(c)), *_HEAD, *affine("cls.seq_relationship", "next_sentence")),
    Net("BigBirdModel", BigBirdModel, transformers(lambda c: _trunk(c, above=""))),
    _net("ForSequenceClassification", lambda c: tasks.DenseClassification(BigBirdModel(c, pooler=False), c, c.hidden_act),
         *affine("classifier.dense", "head.dense"), *affine("classifier.out_proj", "head.out")),
    _net("ForTokenClassification", lambda c: tasks.TokenClassification(BigBirdModel(c, pooler=False), c),
         *affine("classifier", "classifier")),
    _net("ForQuestionAnswering", BigBirdForQuestionAnswering, *affine("qa_classifier.intermediate.dense", "reading.up"),
         *affine("qa_classifier.output.dense", "reading.down"), *affine("qa_classifier.output.LayerNorm", "residual.norm"),
         *affine("qa_classifier.qa_outputs", "classifier"), pooler=False),
    _net("ForMultipleChoice", lambda c: tasks.PooledChoice(BigBirdModel(c), c), *affine("classifier", "classifier")),
))

CARD = Card(
    title="BigBird",
    paper="Zaheer, Guruganesh, Dubey, Ainslie, Alberti, Ontanon, Pham, Ravula, Wang, Yang, Ahmed. Big Bird: Transformers for Longer "
          "Sequences",
    year=2020,
    url="https://arxiv.org/abs/2007.14062",
    equation=r"\mathcal{L} = -\frac{1}{|M|} \sum_{i \in M} \log p_\theta(x_i \mid \tilde{x})",
    symbols="M are the 15 % of the tokens that are to be predicted; in the input x with a tilde, 80 % of them are masked, 10 % replaced "
            "and 10 % kept. The mean is over the whole global batch.",
    masks={"Random blocks": Mask(blocks=_random_blocks.paper(8, 2, 1, 0)),
           "A long text and a short one": Mask(lengths=(12, 4), document_blocks=(_random_blocks.paper(6, 2, 1, 0), None))},
    reference="transformers.BigBirdForMaskedLM",
)

FAMILIES = (
    Family(
        name="bigbird",
        card=CARD,
        config=BigBirdConfig,
        sizes=SIZES,
        adapt=_adapt,
        pretraining=Task("masked words of long texts", MaskingSettings, create, adapt=with_separator),
        tasks=tuple(_told(task) for task in encoder_tasks(NETS)),
        nets=NETS,
        heads=("head", "next_sentence", "classifier", "reading", "residual", "trunk.pooler"),
        starts={"bigbird": Adopt(repeated_positions), "roberta": Adopt(_after_padding, from_roberta),
                **{name: Adopt(partial(repeated_positions, offset=0), from_bert) for name in ("bert", "macbert", "spanbert")}},
        model_type="big_bird",
        vocabulary=Vocabulary("byte-bpe", "roberta"),
    ),
)
