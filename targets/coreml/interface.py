"""What a package's functions, their inputs, outputs and states are called, and what its metadata say by which key."""

from __future__ import annotations

DECODE, PREFILL = "decode", "prefill"
IDS, POSITION, N_TOKENS = "input_ids", "position", "n_tokens"
LOGITS = "logits"
HIDDEN_IN, HIDDEN_OUT = "hidden_in", "hidden_out"
KV_CACHE, CONV_STATE = "kv_cache", "conv_state"
CONV_IN, CONV_OUT = f"{CONV_STATE}_in", f"{CONV_STATE}_out"

# How many positions the states hold, at which ids a text ends, what the weights are stored as, and which of several
# packages it is.
CONTEXT_KEY, STOPS_KEY, QUANT_KEY, PART_KEY = "context", "stop_token_ids", "quant", "part"
