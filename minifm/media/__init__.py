"""Media: pictures, sounds, films and solids as arrays, out of files and out of nothing.

In reading order: examples (what all of them are to training) → drawing (what is shown of them, and
their files) → digits, the smallest real data there are.
"""

from minifm.media.digits import digits
from minifm.media.examples import KINDS, PICTURE, SOLID, SOUND, VIDEO, Examples, Kind
from minifm.media.wanted import MediaConfig
