"""What reads the captions that a diffusion model learns: a small encoder that learns with it
(Rombach et al. 2022, section 3.3), or one that has learnt elsewhere and stays as it is (Saharia et
al. 2022, section 2.1).
"""

from dataclasses import dataclass

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.hub import load_model, resolve, tokenizer_of
from minifm.models.clip import TextTower, TextTowerConfig
from minifm.models.composite import text_encoder
from minifm.text import Tokenizer
from minifm.text.captions import caption_rows, caption_tokenizer

OWN = {"text_layers": 2, "text_width": 64, "text_heads": 2, "text_vocabulary": 512,
       "text_length": None}
READERS = ("unet",)         # the architectures that look at texts


@dataclass(frozen=True)
class CaptionConfig:
    """How captions are read."""

    captions: bool | None = setting(
        None, "learn the captions, in place of the classes (default: a unet does, where the data "
        "have some)")
    text_encoder: str | None = setting(
        None, "what reads them: a model (CLIP, BERT, RoBERTa, ModernBERT or T5), a directory or a "
        "name on the hub, that learns no more (default: a small one that learns, too)")
    text_layers: int | None = setting(
        None, f"blocks of the small one (default: {OWN['text_layers']})", least=1)
    text_width: int | None = setting(
        None, f"numbers that it makes of a token (default: {OWN['text_width']})", least=1)
    text_heads: int | None = setting(
        None, f"its attention heads (default: {OWN['text_heads']})", least=1)
    text_vocabulary: int | None = setting(
        None, "its tokens at most, which are learnt from the captions (default: "
        f"{OWN['text_vocabulary']})", least=1)
    text_length: int | None = setting(
        None, "tokens of a caption that it reads at most (default: what the longest has)", least=1)

    def __post_init__(self):
        check(self)
        own = [name for name in OWN if getattr(self, name) is not None]
        if self.text_encoder is not None and own:
            raise ConfigError(f"{', '.join(own)}: the model that is to read the captions has its "
                              "own; leave it out")
        if self.captions is False and (own or self.text_encoder is not None):
            raise ConfigError(f"{', '.join(own) or 'text_encoder'}: it is of --captions, which "
                              "are left out")

    def learns(self, examples, arch, say=None):
        """Whether a run of these Examples learns captions; `say` is called with a line on what is
        left out. Raises ConfigError where it cannot, and is asked to."""
        there, reads = examples.captions is not None, arch in READERS
        wanted = self.captions or self.text_encoder is not None
        if wanted and not there:
            raise ConfigError("captions: the data have none")
        if wanted and not reads:
            raise ConfigError(f"captions: a {arch} does not read them; {', '.join(READERS)} does")
        found = there and reads and self.captions is not False
        if say and found and examples.classes:
            say("learning the captions, not the classes (which --no-captions learns)")
        elif say and there and not reads:
            say(f"learning without the captions, which a {arch} does not read; classes it does")
        return found

    def trains(self, encoder):
        """Whether the encoder learns with the network: CLIP's tower, unless one was named that is
        to stay as it is."""
        return self.text_encoder is None and isinstance(encoder, TextTower)

    def encoder(self, captions, rng):
        """(the encoder that is to read the captions, its Tokenizer), new or of the model named;
        `rng` draws a new one's weights. Raises ConfigError or FormatError."""
        if self.text_encoder is not None:
            place = resolve(self.text_encoder)
            return text_encoder(load_model(place), place), Tokenizer.load(tokenizer_of(place))
        own = {name: default if getattr(self, name) is None else getattr(self, name)
               for name, default in OWN.items()}
        tokenizer = caption_tokenizer(captions, own["text_vocabulary"])
        length = own["text_length"] or caption_rows(tokenizer, captions)[0].shape[1]
        config = TextTowerConfig(
            layers=own["text_layers"], heads=own["text_heads"], width=own["text_width"],
            vocabulary=tokenizer.vocabulary, context=length, end=tokenizer.end_of_text)
        tokenizer.settings["model_max_length"] = length      # which other libraries fill rows up to
        return TextTower(config, rng), tokenizer
