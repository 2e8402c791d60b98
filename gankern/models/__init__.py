"""One file an architecture; each has a Generator and a Discriminator."""
