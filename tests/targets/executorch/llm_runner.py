"""What an app does: the stock LLM runner with a file and its tokenizer. Arguments: .pte, tokenizer, .ptd or nothing, tokens, prompts.

The runner itself prints what it goes on with; a zero byte ends each prompt's, one conversation after the other.
"""

import sys

import executorch.kernels.quantized  # noqa: F401  # an app links these operators
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner


def main() -> None:
    model, tokenizer, data, n_tokens, *prompts = sys.argv[1:]
    runner = TextLLMRunner(model, tokenizer, data or None)
    for prompt in prompts:
        runner.generate(prompt, GenerationConfig(echo=False, temperature=0.0, max_new_tokens=int(n_tokens), num_bos=1))
        sys.stdout.buffer.write(b"\0")
        sys.stdout.flush()
        runner.reset()


if __name__ == "__main__":
    main()
