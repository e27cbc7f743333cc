"""A decoder that writes a given text, for tests of what is done with text."""

import torch
from polymodal.shared.decoder import DecoderInfo


class Script(torch.nn.Module):
    """A decoder that knows one text by heart, its first token is the prompt."""

    def __init__(self, script, vocabulary, end):
        super().__init__()
        self.script, self.end = script, end
        self.anchor = torch.nn.Parameter(torch.zeros(vocabulary))

    @property
    def decoder_info(self):
        return DecoderInfo(max_positions=500, num_layers=1, eos_token_id=self.end, pad_token_id=self.end)

    def next_logits(self, input_ids, attention_mask, position_ids, cache):
        cache.advance(input_ids.shape[1])
        return torch.stack([self._row(int(p)) for p in position_ids[:, -1]])

    def _row(self, position):
        token = self.script[position + 1] if position + 1 < len(self.script) else self.end
        return torch.nn.functional.one_hot(torch.tensor(token), len(self.anchor)).float()


def scripted(tok, text):
    return Script(tok.encode(text, add_special_tokens=False), tok.vocab_size, tok.eos_id)
