"""How the bundled models were made: text, tokenizer, training. Not part of the wheel."""
