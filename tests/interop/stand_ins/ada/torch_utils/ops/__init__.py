"""Its operators, which all need a compiler."""
