"""Natural-gradient variational inference with a precision that is low-rank plus diagonal: the steps of SLANG."""
