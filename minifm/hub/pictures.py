"""How pictures become the numbers that a model looks at: preprocessor_config.json.

    scale = PictureScale.load(directory, channels=3)
    x = scale(pictures)                             # of -1 … 1, as all of minifm has them

Models made here take them as they are; published ones were trained on others, by channel.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm.atomic import write_json
from minifm.errors import ConfigError, FormatError
from minifm.hub.arrays import opened, parse_json

FILE = "preprocessor_config.json"
# Of CLIP (Radford et al. 2021), what other libraries take for granted where a model does not say.
PUBLISHED = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
OWN = 0.5               # of values in 0 … 1: the mean and the deviation that make -1 … 1 of them


@dataclass(frozen=True)
class PictureScale:
    """mean, deviation   of each channel, of values in 0 … 1: what is subtracted, then divided by"""

    mean: tuple
    deviation: tuple

    def __call__(self, pictures):
        """float32 [B, C, H, W] in -1 … 1 -> the same, on this scale. Raises ConfigError for
        another number of channels."""
        if pictures.shape[1] != len(self.mean):
            raise ConfigError(f"pictures of {pictures.shape[1]} channels, and the model looks at "
                              f"{len(self.mean)}")
        mean, deviation = (np.array(values, np.float32)[:, None, None]
                           for values in (self.mean, self.deviation))
        return pictures * (OWN / deviation) + (OWN - mean) / deviation

    def save(self, directory, size):
        """Write preprocessor_config.json, of square pictures of `size`, into a directory."""
        write_json({
            "image_processor_type": "CLIPImageProcessor", "do_resize": True,
            "size": {"shortest_edge": size}, "do_center_crop": True,
            "crop_size": {"height": size, "width": size}, "resample": 3, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(self.mean),
            "image_std": list(self.deviation), "do_convert_rgb": len(self.mean) == 3,
        }, Path(directory) / FILE)

    @classmethod
    def own(cls, channels):
        """That of models made here: -1 … 1 stay as they are."""
        return cls((OWN,) * channels, (OWN,) * channels)

    @classmethod
    def load(cls, directory, channels):
        """Of the model in a directory, which looks at so many channels. Raises FormatError for a
        damaged file, or one of other channels."""
        file = Path(directory) / FILE
        if not file.exists():
            return cls(*PUBLISHED) if channels == 3 else cls.own(channels)
        with opened(file) as (stream, _):
            said = parse_json(stream.read(), file)
        if said.get("do_normalize") is False:
            raise FormatError(file, "do_normalize", "expected true")
        found = []
        for key, published in zip(("image_mean", "image_std"), PUBLISHED):
            values = said.get(key, list(published))
            if not isinstance(values, list) or len(values) != channels or not all(
                    isinstance(x, (int, float)) and abs(x) < 1e3 for x in values):
                raise FormatError(file, key, f"expected {channels} numbers, got {values!r:.80}")
            found.append(tuple(map(float, values)))
        if min(found[1]) <= 0:
            raise FormatError(file, "image_std", f"expected more than 0, got {found[1]}")
        return cls(*found)
