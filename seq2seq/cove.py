"""CoVe. McCann, Bradbury, Xiong and Socher, "Learned in Translation: Contextualized Word Vectors", 2017.
https://arxiv.org/abs/1708.00107

An encoder of LSTMs learns to translate, with a decoder that looks back at all its states. What other tasks read afterwards are these
states (the route `features`): vectors of words in their sentences.

    source [S] -> x [S, H / 2] -> BiLSTMs -> memory M [S, H]
    h_t  = LSTMs([z_{t-1}; h~_{t-1}], h_{t-1})         z: the target's last word; begins with the states that the encoder ends with
    a_t  = softmax(M (W_1 h_t + b_1))                  [S]
    h~_t = tanh(W_2 [M^T a_t; h_t] + b_2)              -> softmax(W_out h~_t + b_out)

Faithful: the network (section 3), two layers of which a direction has the width 300, dropout of 0.2, each word from those before it; as in
the authors' code (not looked up again) the decoder begins with the encoder's last states and cells of the same layer, and h~_0 is 0.

Deviations, each with its reason:
* The vectors of the source's words are learnt with the rest, from random ones. The paper has GloVe's, which no package holds, and leaves
  them as they are.
* Source and target share a vocabulary, and have a table each. The paper's are words; other tokens are possible.
* Dropout of what each LSTM reads, of the memory and of h~; once each, where the paper says "inputs and outputs of all layers".
* The recipes' optimizer; the paper has SGD whose rate is halved when the perplexity rises.
* 1 is added to forget gates, as in all LSTMs here.
* As features the words' own vectors come doubled ([x; x]), so that all layers have one width, as ELMo's do. The paper sets GloVe beside
  the memory; here a mix weighs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..shared.attention.cache import KVCache
from ..shared.config import Config
from ..shared.decoder import ConditionedDecoder, DecoderInfo
from ..shared.family import Card, Context, Family, Net, Task, Vocabulary
from ..shared.heads import LMHead
from ..shared.loss import at_least_fp32
from ..shared.tokenizer import Tokenizer
from ..text._lstm import BiLSTM, State, Steps
from ..text._own import own_format
from .encoder_decoder import EncoderDecoderLMOutput, TextEncoderOutput
from .teacher_forcing import Seq2SeqBatch
from .text2text import Text2TextObjective, Text2TextSettings, Text2TextSystem

MODEL_TYPE = "cove"


@dataclass(frozen=True, kw_only=True)
class CoveConfig(Config):
    """The defaults are the paper's."""

    vocab_size: int = 50000
    """V, of both languages."""
    hidden_size: int = 600
    """H, the width of the memory: both directions of an LSTM. A word's vector has the width of one."""
    num_hidden_layers: int = 2
    """Layers of the encoder, and of the decoder."""
    dropout: float = 0.2
    """Dropout of what each LSTM reads, of the memory, and of what the softmax reads."""
    pad_token_id: int = 0
    """Fills short rows."""
    bos_token_id: int = 2
    """What a target begins behind."""
    eos_token_id: int = 3
    """What a text ends with."""

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = ("vocab_size", "hidden_size", "num_hidden_layers")
    PROBABILITIES: ClassVar[tuple[str, ...]] = ("dropout",)

    def problems(self) -> list[str]:
        """What is wrong with the fields, alone and together."""
        problems = super().problems()
        if self.hidden_size % 2:
            problems.append(f"hidden_size is {self.hidden_size}, expected an even number: both directions have half of it")
        tokens = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        problems += [f"{name} is {token}, expected an id from 0 to vocab_size {self.vocab_size} - 1"
                     for name, token in tokens.items() if not 0 <= token < self.vocab_size]
        return problems


SIZES: dict[str, dict[str, Any]] = {"tiny": {"hidden_size": 128, "dropout": 0.1}, "base": {}}


# ---------------------------------------------------------------------------------------------- networks


@dataclass
class Memory:
    """What the decoder has of N texts of up to S tokens."""

    states: Tensor
    """[N, S, H]"""
    keep: Tensor
    """bool [N, S]"""
    begin: list[State]
    """h and c of each layer of the decoder before its first token, and twice h~, [N, H] each."""

    def chosen(self, rows: Tensor) -> Memory:
        """That of some texts."""
        return Memory(self.states[rows], self.keep[rows], [(h[rows], c[rows]) for h, c in self.begin])

    def first(self, count: int) -> Memory:
        """That of the first texts."""
        return Memory(self.states[:count], self.keep[:count], [])


class MTLSTM(nn.Module):
    """The encoder: what other tasks read."""

    def __init__(self, config: CoveConfig) -> None:
        super().__init__()
        self.config = config
        half = config.hidden_size // 2
        self.embed = nn.Embedding(config.vocab_size, half)
        nn.init.normal_(self.embed.weight, std=half**-0.5)
        self.lstm = BiLSTM(half, half, config.num_hidden_layers, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, output_hidden_states: bool = False) -> TextEncoderOutput:
        """Read texts [B, S]; `attention_mask` [B, S] is nonzero where there is not padding. The first of the layers is [x; x]."""
        there = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        ids, lengths = input_ids[there], there.sum(1).tolist()
        x = self.embed(ids)
        layers = [torch.cat([x, x], -1), *(states for states, _ in self.lstm.layers(x, lengths))]
        hidden = tuple(layer.new_zeros(*input_ids.shape, layer.shape[-1]).masked_scatter(there[..., None], layer) for layer in layers)
        return TextEncoderOutput(hidden[-1], hidden if output_hidden_states else None)

    def memory(self, input_ids: Tensor, lengths: Sequence[int]) -> Memory:
        """What a decoder reads of texts that lie one after the other, [T]."""
        layers = self.lstm.layers(self.embed(input_ids), lengths)
        states = nn.utils.rnn.pad_sequence(list(self.dropout(layers[-1][0]).split(list(lengths))), batch_first=True)
        keep = torch.arange(max(lengths)) < torch.tensor(list(lengths))[:, None]
        nothing = states.new_zeros(len(lengths), states.shape[-1])
        return Memory(states, keep.to(states.device, non_blocking=True), [*(last for _, last in layers), (nothing, nothing)])


class Cell(nn.Module):
    """One step of an LSTM.

    Args:
        input_size: width of what is read.
        hidden_size: width of the state.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size + hidden_size, 4 * hidden_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, state: State) -> State:
        """What follows on a state, when x [B, input] is read."""
        h, c = state
        i, f, g, o = at_least_fp32(self.linear(torch.cat([x, h], -1))).chunk(4, -1)
        c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class AttentiveDecoder(nn.Module):
    """LSTMs that look at the memory of a text at every step."""

    def __init__(self, config: CoveConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, width // 2)
        nn.init.normal_(self.embed.weight, std=(width // 2) ** -0.5)
        self.cells = nn.ModuleList(Cell(width + (0 if number else width // 2), width) for number in range(config.num_hidden_layers))
        self.query, self.joined = nn.Linear(width, width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def step(self, z: Tensor, state: Sequence[State], memory: Memory) -> list[State]:
        """What follows on a state (see `Memory.begin`), when the vectors z [B, H / 2] of tokens are read."""
        found: list[State] = []
        x = torch.cat([z, state[-1][0]], -1)
        for cell, before in zip(self.cells, state[:-1], strict=True):
            found.append(cell(self.dropout(x), before))
            x = found[-1][0]
        scores = torch.einsum("bsh,bh->bs", memory.states, self.query(x).to(memory.states.dtype))
        share = at_least_fp32(scores).masked_fill(~memory.keep, -torch.inf).softmax(-1)
        seen = torch.einsum("bs,bsh->bh", share.to(memory.states.dtype), memory.states)
        attended = self.dropout(at_least_fp32(self.joined(torch.cat([seen.to(x.dtype), x], -1))).tanh())
        return [*found, (attended, attended)]

    def forward(self, input_ids: Tensor, lengths: Sequence[int], memory: Memory) -> Tensor:
        """h~ [T, H] of targets that lie one after the other, [T]; no row is computed behind its end."""
        steps = Steps.of(lengths, input_ids.device)
        memory = memory.chosen(steps.rows)
        z, state, found = self.embed(input_ids.index_select(0, steps.order)), memory.begin, list[Tensor]()
        for part in z.split(steps.sizes):
            count = len(part)
            state = self.step(part, [(h[:count], c[:count]) for h, c in state], memory.first(count))
            found.append(state[-1][0])
        return torch.cat(found).index_select(0, steps.places)


class CoveForTranslation(nn.Module):
    """The encoder, a decoder beside its memory, and the softmax: text in, text out."""

    def __init__(self, config: CoveConfig) -> None:
        super().__init__()
        c = self.config = config
        self.trunk, self.decoder = MTLSTM(config), AttentiveDecoder(config)
        self.head = LMHead(c.hidden_size, c.vocab_size, bias=True)
        # each layer of the decoder has its state where others have keys and cells where others have values, and h~ is one layer more
        self.decoder_info = DecoderInfo(max_positions=sys.maxsize, num_layers=c.num_hidden_layers + 1, bos_token_id=c.bos_token_id,
                                        eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                decoder_input_ids: Tensor | None = None) -> EncoderDecoderLMOutput:
        """Logits of targets.

        Args:
            input_ids: texts [B, S].
            attention_mask: [B, S], nonzero where there is not padding.
            decoder_input_ids: [B, T]: the start id, then the target without its last id. Padding on the right is seen by nothing.
        """
        assert decoder_input_ids is not None, "an encoder-decoder reads two sequences"
        there = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        memory = self.trunk.memory(input_ids[there], there.sum(1).tolist())
        rows, length = decoder_input_ids.shape
        x = self.decoder(decoder_input_ids.flatten(), [length] * rows, memory)
        return EncoderDecoderLMOutput(self.head(x).unflatten(0, (rows, length)), memory.states)

    def decoder_for(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> RememberingDecoder:
        """Encode texts [B, S] for generating; `attention_mask` [B, S] is nonzero where there is not padding."""
        return RememberingDecoder(self, input_ids, attention_mask)


class RememberingDecoder(ConditionedDecoder):
    """A decoder beside the memory of texts; its states lie in the cache of generation."""

    def __init__(self, net: CoveForTranslation, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        super().__init__()
        self.net, self.decoder_info = net, net.decoder_info
        self.start = input_ids.new_full((len(input_ids), 1), net.config.bos_token_id)
        there = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        training = net.training
        self.eval()
        memory = net.trunk.memory(input_ids[there], there.sum(1).tolist())
        self.train(training)
        self.memories = {len(input_ids): memory}
        """By how many rows are written, several of which may answer one text."""

    def next_logits(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Read new ids [R, T] after what the cache holds; logits [R, V] of the id that follows."""
        rows, texts = len(input_ids), len(self.start)
        if rows not in self.memories:
            each = torch.arange(texts, device=input_ids.device).repeat_interleave(rows // texts)
            self.memories[rows] = self.memories[texts].chosen(each)
        memory, decoder = self.memories[rows], self.net.decoder
        state = memory.begin if not cache.length else [cache.last(number) for number in range(self.decoder_info.num_layers)]
        for z in decoder.embed(input_ids).unbind(1):
            state = decoder.step(z, state, memory)
            for number, (h, c) in enumerate(state):
                cache.append(number, h[:, None, None], c[:, None, None])
            cache.advance(1)
        return self.net.head(state[-1][0])


# ------------------------------------------------------------------------------------------ the loss side


class CoveSystem(Text2TextSystem):
    """CoVe's pretraining: translation, with teacher forcing."""

    compiles = False
    captions = ("text", "translation", "written")

    def states(self, batch: Seq2SeqBatch) -> Tensor:
        """See `Seq2SeqSystem.states`."""
        net: Any = self.net
        memory = net.trunk.memory(batch.input_ids[0], batch.lengths)
        return net.decoder(batch.decoder_input_ids[0], batch.decoder_lengths, memory)


# --------------------------------------------------------------------------------------------- the entry


def create(config: CoveConfig, settings: Text2TextSettings, context: Context) -> CoveSystem:
    """Build CoVe with randomly initialized weights and its objective."""

    def objective(tokenizer: Tokenizer) -> Text2TextObjective:
        return Text2TextObjective(tokenizer.fitting(config.vocab_size), settings, config.bos_token_id)

    return CoveSystem(cast("Any", CoveForTranslation(config)), context.objective("cove", objective), settings.label_smoothing)


def adapt(config: CoveConfig, context: Context) -> CoveConfig:
    """Take vocabulary size and special ids from the tokenizer."""
    t = context.tokenizer
    if t is None:
        return config
    pad, eos = t.need("CoVe", "pad", "eos")
    return replace(config, vocab_size=t.vocab_size, pad_token_id=pad, eos_token_id=eos, bos_token_id=pad if t.bos_id is None else t.bos_id)


CARD = Card(
    title="CoVe",
    paper="McCann, Bradbury, Xiong, Socher. Learned in Translation: Contextualized Word Vectors",
    year=2017,
    url="https://arxiv.org/abs/1708.00107",
    equation=r"\mathcal{L} = -\frac{1}{|y|} \sum_{t=1}^{|y|} \log p_\theta(y_t \mid y_{<t}, x), \qquad "
             r"\mathrm{CoVe}(x) = \mathrm{BiLSTM}(x)",
    symbols="The translation y of the text x is written word by word; what other tasks read are the encoder's states of x.",
    masks={},
    reference="the network written out in plain loops",
)

FAMILIES = (
    Family(
        name="cove",
        card=CARD,
        config=CoveConfig,
        sizes=SIZES,
        adapt=adapt,
        pretraining=Task("a translation of a text", Text2TextSettings, create),
        nets=tuple(Net(net.__name__, net, own_format(net, CoveConfig, MODEL_TYPE)) for net in (CoveForTranslation, MTLSTM)),
        heads=("decoder", "head"),
        vocabulary=Vocabulary("word", "plain"),
    ),
)
