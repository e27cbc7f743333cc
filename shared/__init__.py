"""What two or more families use: masks, attention, blocks, losses, tokenizers, the contract."""
