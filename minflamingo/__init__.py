"""minFlamingo: the Flamingo visual language model (Alayrac et al. 2022), to read, to train from nothing, and to use.

The core in reading order: shapes, config, attention, layers, vision, contrastive, resampler, gated_xattn, lm, flamingo,
generate, tokenizer. Around it: fast, pipeline, data, training, evaluation, pretrained, recipes, plots.
"""

__version__ = "0.1.0"

from . import fast
from .config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig, preset
from .data.sample import EOC, NoLoss, Sample, collate
from .flamingo import Batch, Flamingo
from .lm import LM
from .pipeline import Pipeline, load
from .resampler import PerceiverResampler
from .tokenizer import Tokenizer, ToyTokenizer
from .vision import ViT

__all__ = [
    "EOC", "LM", "Batch", "Flamingo", "FlamingoConfig", "LMConfig", "NoLoss", "PerceiverResampler", "Pipeline",
    "ResamplerConfig", "Sample", "Tokenizer", "ToyTokenizer", "ViT", "VisionConfig", "collate", "fast", "load", "preset",
]  # fmt: skip
