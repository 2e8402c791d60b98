"""Where the stand-in keeps its networks."""
