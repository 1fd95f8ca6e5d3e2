"""Images: reading them, cropping them, batches in a fixed order, and the photographs that ship with the package."""

from dqcore.data.images import (
    BrokenImageError,
    image_to_tensor,
    list_images,
    read_image,
    split_images,
    tensor_to_image,
)

__all__ = ["BrokenImageError", "image_to_tensor", "list_images", "read_image", "split_images", "tensor_to_image"]
