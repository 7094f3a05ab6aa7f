"""The contract: the same test bodies over every way to run and every kind of socket (`flavours`)."""
