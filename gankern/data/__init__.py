"""Image folders and zips in, batches of uint8 out; and the preparation of datasets."""
