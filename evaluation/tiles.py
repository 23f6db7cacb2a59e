"""Images cut into squares, for probes that need many."""

import PIL.Image

from ..blocks.slots import ImageSource


class Tiles(ImageSource):
    """The squares of ``side`` pixels that images hold, in rows from the top left; margins are left out.

    A few photographs become enough images to look for neighbours among. Tiles of one image are related, which makes
    neighbours easier to find than among as many photographs.

    Raises:
        ValueError: no image is so large.
    """

    def __init__(self, images: ImageSource, side: int) -> None:
        self.images, self.side = images, side
        self.places = [
            (index, top, left)
            for index in range(len(images))
            for height, width in [images.size(index)]
            for top in range(0, height - side + 1, side)
            for left in range(0, width - side + 1, side)
        ]
        self._last: tuple[int, PIL.Image.Image] | None = None
        if not self.places:
            raise ValueError(f"tile: must fit into an image, got {side} for {len(images)} smaller ones")

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        image, top, left = self.places[index]
        return f"{self.images.name(image)}@{top},{left}"

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def read(self, index: int) -> PIL.Image.Image:
        image, top, left = self.places[index]
        if self._last is None or self._last[0] != image:
            self._last = image, self.images.read(image)
        return self._last[1].crop((left, top, left + self.side, top + self.side))


def tiled(images: ImageSource, tile: int | None) -> ImageSource:
    return images if tile is None else Tiles(images, tile)
