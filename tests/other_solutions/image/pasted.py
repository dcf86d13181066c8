"""A crop that is pasted on black, and PyTorch for the numbers."""

import numpy as np
import torch
from PIL import Image

from minillava.inputs.image import _allowed, to_rgb


class ImageProcessor:
    def __call__(self, image):
        pixels = torch.from_numpy(np.array(self.view(image), dtype=np.float64)).permute(2, 0, 1)
        if self.do_rescale:
            pixels = pixels * self.rescale_factor
        if self.do_normalize:
            mean, std = (torch.tensor(three, dtype=torch.float64) for three in (self.image_mean, self.image_std))
            pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        return pixels.float().contiguous()

    def view(self, image):
        image = to_rgb(image)
        if self.do_pad:
            side = max(image.size)
            _allowed(image.size, (side, side))
            square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in self.image_mean))
            square.paste(image, tuple((side - length) // 2 for length in image.size))
            image = square
        if self.do_resize:
            image = image.resize(self._resized(image.width, image.height), resample=self.resample)
        if self.do_center_crop:
            width, height = self.crop_size["width"], self.crop_size["height"]
            black = Image.new("RGB", (width, height))
            black.paste(image, (-((image.width - width) // 2), -((image.height - height) // 2)))
            image = black
        return image
