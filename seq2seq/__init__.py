"""Families that write text, and what they share.

Families: `gpt`, `gpt2`, `gpt3`, `t5`, `bart`, `mass`. `causal` has the network, the data side and the loss of every decoder;
`encoder_decoder` the networks of every encoder-decoder, `teacher_forcing` their examples, batches and loss. `spans` is the data side of
T5's pretraining, `denoising` of BART's. `text2text` is the task that encoder-decoders are fine-tuned for; `languages` has the vectors that
say in which language a text is. `generation/` makes text with any decoder. May import: shared, text (the tasks of encoders).
"""
