"""Media: pictures, sounds, films and solids as arrays, out of files and out of nothing.

    examples = open("photographs/", MediaConfig(size=32))       # or open("glyphs")

In reading order: examples (what all of them are to training) → drawing (what is shown of them, and
their files) → digits, the smallest real data there are. Then what is made here: pairs → glyphs,
tones, moving, solids. And files: files (folders, captions, what is held out) → pictures, films,
waves, arrays, one kind each; pickled → tables (MNIST, CIFAR). sources chooses, by name or path.
"""

from minifm.media.digits import digits
from minifm.media.examples import KINDS, PICTURE, SOLID, SOUND, VIDEO, Examples, Kind
from minifm.media.sources import BUILT_IN, READERS, open
from minifm.media.wanted import MediaConfig
