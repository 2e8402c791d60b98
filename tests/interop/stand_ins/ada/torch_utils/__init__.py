"""Support code of the stand-in."""
