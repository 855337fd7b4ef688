"""Models, one a file: stored (what all share), causal (what decoders share), then gpt, llama;
encoder (what encoders share), then bert, modernbert; seq2seq (what encoder-decoders share), then
transformer, t5; heads for other tasks. The networks of diffusion: parts (what they share), then
unet, dit, autoencoder; clip, which reads their prompts; composite, which joins them; prior, which
works with a clip; gan, which they are compared with; classifier, by which what they make is judged.

In the table `MODELS` a checkpoint's `model_type` finds its class, in `NETWORKS` its `_class_name`
does, where it is a network of a diffusion model; in `ARCHITECTURES` the name on the command line
finds all that is needed to make a new one.
"""

from typing import NamedTuple

from minifm.errors import ConfigError
from minifm.models import (
    autoencoder,
    bert,
    classifier,
    clip,
    dit,
    gan,
    gpt,
    llama,
    modernbert,
    prior,
    t5,
    transformer,
    unet,
)
from minifm.models.autoencoder import AutoencoderConfig, AutoencoderKL
from minifm.models.bert import LAYOUTS as BERT_LAYOUTS
from minifm.models.bert import Bert, BertConfig
from minifm.models.classifier import ClassifierConfig, PictureClassifier
from minifm.models.clip import CLIP, CLIPConfig, CLIPShape, ImageTower, TextTower
from minifm.models.composite import Composite, CompositeConfig, network_of
from minifm.models.dit import DiT, DiTConfig
from minifm.models.gan import GAN, GANConfig
from minifm.models.gpt import GPT, GPTConfig
from minifm.models.heads import (
    HeadConfig,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    with_head,
)
from minifm.models.llama import LAYOUTS, Llama, LlamaConfig
from minifm.models.modernbert import ModernBert, ModernBertConfig
from minifm.models.packing import pack_model, packed_format, unpack_model
from minifm.models.prior import Prior, PriorConfig
from minifm.models.t5 import T5, T5Config
from minifm.models.transformer import Transformer, TransformerConfig
from minifm.models.unet import UNet, UNetConfig

__all__ = ["ARCHITECTURES", "AutoencoderConfig", "AutoencoderKL", "Bert", "BertConfig", "CLIP",
           "CLIPConfig", "CLIPShape", "ClassifierConfig", "Composite", "CompositeConfig", "DiT",
           "DiTConfig", "GAN", "GANConfig", "GPT", "GPTConfig", "HeadConfig", "ImageTower",
           "Llama", "LlamaConfig", "MODELS", "ModernBert", "ModernBertConfig", "NETWORKS",
           "PictureClassifier", "Prior", "PriorConfig", "QuestionAnswerer", "SequenceClassifier",
           "T5", "T5Config", "TextTower", "TokenClassifier", "Transformer", "TransformerConfig",
           "UNet", "UNetConfig", "architecture_of", "network_of", "pack_model", "packed_format",
           "unpack_model", "with_head"]

MODELS = dict.fromkeys(gpt.LAYOUTS, GPT) | dict.fromkeys(LAYOUTS, Llama) \
    | dict.fromkeys(BERT_LAYOUTS, Bert) \
    | {model.model_type: model for model in (Transformer, T5)} \
    | {modernbert.MODEL_TYPE: ModernBert, "clip": CLIP, clip.TEXT: TextTower,
       clip.IMAGE: ImageTower}
NETWORKS = dict.fromkeys(unet.CLASSES, UNet) | dict.fromkeys(dit.CLASSES, DiT) \
    | {autoencoder.CLASS: AutoencoderKL, prior.CLASS: Prior,
       classifier.CLASS: PictureClassifier, gan.CLASS: GAN}


class Architecture(NamedTuple):
    """What `--arch` stands for: a model's class, that of its configuration, the shapes that are
    known by name, {name: {setting: value}}, the one that is taken unless another is named, the
    settings that tell it from other architectures of the class, and what it learns from: text,
    examples such as pictures out of noise, pictures there and back, deceiving another network,
    captions and their pictures, or what a CLIP makes of these."""

    model: type
    config: type
    presets: dict
    default: str
    fixed: dict = {}
    learns: str = "text"


ARCHITECTURES = {
    "gpt": Architecture(GPT, GPTConfig, gpt.PRESETS, "mini"),
    "llama": Architecture(Llama, LlamaConfig, llama.PRESETS, "llama-mini"),
    "bert": Architecture(Bert, BertConfig, bert.PRESETS, "bert-tiny", {"layout": "bert"}),
    "roberta": Architecture(Bert, BertConfig, bert.ROBERTA_PRESETS, "roberta-tiny",
                            {"layout": "roberta"}),
    "modernbert": Architecture(ModernBert, ModernBertConfig, modernbert.PRESETS,
                               "modernbert-tiny"),
    "transformer": Architecture(Transformer, TransformerConfig, transformer.PRESETS,
                                "transformer-tiny"),
    "t5": Architecture(T5, T5Config, t5.PRESETS, "t5-tiny"),
    "unet": Architecture(UNet, UNetConfig, unet.PRESETS, "unet-tiny", learns="examples"),
    "dit": Architecture(DiT, DiTConfig, dit.PRESETS, "dit-tiny", learns="examples"),
    "autoencoder": Architecture(AutoencoderKL, AutoencoderConfig, autoencoder.PRESETS,
                                "autoencoder-tiny", learns="pictures"),
    "gan": Architecture(GAN, GANConfig, gan.PRESETS, "gan-tiny", learns="deceiving"),
    "prior": Architecture(Prior, PriorConfig, prior.PRESETS, "prior-tiny", learns="embeddings"),
    "clip": Architecture(CLIP, CLIPShape, clip.PRESETS, "clip-tiny", learns="captions"),
}


def architecture_of(model):
    """The name in ARCHITECTURES that `model`, or the network of a Composite, is of; raises
    ConfigError for a model of none."""
    model = network_of(model)
    for name, kind in ARCHITECTURES.items():
        if kind.model is type(model) and all(
                getattr(model.config, key) == value for key, value in kind.fixed.items()):
            return name
    raise ConfigError(f"a {type(model).__name__} is none of {', '.join(ARCHITECTURES)}")
