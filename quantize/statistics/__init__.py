"""Statistics of a checkpoint over texts, gathered once for whoever chooses codes and bits: inputs and gradients."""
