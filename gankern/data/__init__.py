"""Image folders and zips in, batches of uint8 out; and the preparation of datasets."""

from gankern.data.dataset import ImageDataset, open_dataset
from gankern.data.feed import DeviceFeed
from gankern.data.loader import BatchStream
from gankern.data.prepare import prepare

__all__ = ["BatchStream", "DeviceFeed", "ImageDataset", "open_dataset", "prepare"]
