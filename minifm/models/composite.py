"""A diffusion model that is more than its network: models that work, and are trained, as one.

    network       undoes noise: a UNet or a DiT
    encoder       reads the caption, a vector for each token, which the network looks at by
                  cross-attention (Rombach et al. 2022): CLIP's tower, or any encoder of texts
    autoencoder   makes smaller images of pictures, in which the network then works

Each part is a model of its own, with its own files; this module only joins them. Which of them a
run trains, and which it leaves as they are, the run decides (nn/freezing.py).
"""

from dataclasses import dataclass

from minifm.errors import ConfigError
from minifm.models.autoencoder import AutoencoderKL
from minifm.models.clip import CLIP, TextTower
from minifm.models.dit import DiT
from minifm.models.encoder import Encoder
from minifm.models.seq2seq import Seq2SeqModel
from minifm.models.stored import Model
from minifm.models.unet import UNet
from minifm.tensor import Tensor

PARTS = {"network": (UNet, DiT), "encoder": (TextTower, Encoder, Seq2SeqModel),
         "autoencoder": (AutoencoderKL,)}


@dataclass(frozen=True)
class CompositeConfig:
    """The configurations of the parts; None of one that is not there."""

    network: object
    encoder: object = None
    autoencoder: object = None

    def __post_init__(self):
        looks = getattr(self.network, "memory_width", None)
        if (self.encoder and self.encoder.width) != looks:
            raise ConfigError(f"memory_width: the network looks at {_wide(looks)}, the encoder "
                              f"makes {_wide(self.encoder and self.encoder.width)}")
        told = getattr(self.network, "vector_width", None)
        if told is not None and told != self.encoder.width:
            raise ConfigError(f"vector_width: the network takes {_wide(told)}, the encoder makes "
                              f"{_wide(self.encoder.width)}")
        if self.autoencoder and self.autoencoder.latents != self.network.inputs:
            raise ConfigError(f"inputs: the network takes {self.network.inputs} channels, the "
                              f"autoencoder's latents have {self.autoencoder.latents}")

    @property
    def model(self):
        """The class of the models of this shape."""
        return Composite

    @property
    def parts(self):
        """{name: configuration} of the parts that are there."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) is not None}

    @property
    def parameters(self):
        """How many numbers training adjusts, if it adjusts all."""
        return sum(part.parameters for part in self.parts.values())

    def flops(self, *size, ids=0, memory=0, training=False):
        """Floating-point operations of one example of this size, as the network's configuration
        takes it, under a caption of so many `ids` that the encoder reads, or that is a `memory` of
        so many tokens already; products only. In training, forward and backward."""
        looks = {"memory_length": ids or memory} if ids or memory else {}
        read = self.encoder.flops_of(ids, training) if ids else 0
        return self.network.flops(*size, training=training, **looks) + read


def _wide(width):
    return "no text" if width is None else f"vectors of {width} numbers"


class Composite(Model):
    """The network, told what it can be told by the others."""

    def __init__(self, network, encoder=None, autoencoder=None, *, tokenizer=None):
        """Of models that are there already; the `tokenizer` makes ids for the encoder. Raises
        ConfigError where they do not fit together."""
        self.config = CompositeConfig(*(part and part.config
                                        for part in (network, encoder, autoencoder)))
        self.network, self.encoder, self.autoencoder = network, encoder, autoencoder
        self.tokenizer = tokenizer

    def __call__(self, x, t, *, ids=None, real=None, rng=None, **told):
        """x [B, C, *S] -> [B, C, *S], as the network has it.

        ids, real   [B, T], a caption and where it is no padding: read by the encoder
        told, rng   as of the network: what the encoder has made of a caption may stand there
        """
        if ids is not None:
            told |= self.read(ids, real)
        for name in ("memory", "vector"):
            if name in told and not isinstance(told[name], Tensor):
                told[name] = Tensor(told[name])
        return self.network(x, t, rng=rng, **told)

    def read(self, ids, real):
        """{keyword of the network: value} of captions: a memory [B, T, M], its mask bool [B, T]
        where padding is masked, and, where the network takes one, a vector [B, M]."""
        memory, mask = memory_of(self.encoder, ids, real)
        found = {"memory": memory} | ({} if mask is None else {"memory_mask": mask})
        if getattr(self.config.network, "vector_width", None) is not None:
            found["vector"] = whole_of(self.encoder, memory, ids, real)
        return found

    def parts(self):
        """{name: model} of the parts that are there."""
        return {name: getattr(self, name) for name in self.config.parts}


def memory_of(encoder, ids, real):
    """(memory Tensor [B, T, M], bool [B, T] or None) of what an encoder makes of ids [B, T], where
    `real` marks what is no padding.

    A tower of CLIP looks back only, so that behind the end of a caption every place still tells of
    all of it; and networks look at these, too (Stable Diffusion): nothing is masked. Of encoders
    that look both ways, padding is masked, in them and for the network.
    """
    if isinstance(encoder, TextTower):
        return encoder(ids), None
    read = encoder.encode if isinstance(encoder, Seq2SeqModel) else encoder.features
    return read(ids, key_mask=real), real


def whole_of(encoder, memory, ids, real):
    """[B, M] of memory [B, T, M], a vector for each caption as a whole: of a tower of CLIP that at
    its end, of other encoders the mean over what is no padding."""
    if isinstance(encoder, TextTower):
        return encoder.at_end(memory, ids)
    weights = real / real.sum(1, keepdims=True)                                     # [B, T]
    return (memory * Tensor(weights[..., None].astype(memory.dtype))).sum(1)


def text_encoder(model, name):
    """The encoder of texts that a model is or has; raises ConfigError, with its `name`, for a model
    that reads otherwise."""
    if isinstance(model, CLIP):
        return model.text
    if not isinstance(model, PARTS["encoder"]):
        raise ConfigError(f"{name}: expected an encoder of texts (CLIP's, BERT, RoBERTa, "
                          f"ModernBERT or T5), got a {type(model).__name__}")
    return model


def sees_padding(encoder):
    """Whether padding behind a caption is looked at, and so must always be as long."""
    return isinstance(encoder, TextTower)


def network_of(model):
    """The network of a diffusion model, which is one itself or a Composite."""
    return model.network if isinstance(model, Composite) else model
