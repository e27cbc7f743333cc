"""Families that write text, and what they share.

Families: `gpt2`, `t5`. `encoder_decoder` has the networks of every encoder-decoder, `teacher_forcing` their examples, batches and loss.
`spans` is the data side of T5's pretraining, `text2text` the task that encoder-decoders are fine-tuned for. `generation/` makes text with
any decoder. May import: shared.
"""
