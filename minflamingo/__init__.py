"""minFlamingo: the Flamingo visual language model (Alayrac et al. 2022), to read, to train from nothing, and to use.

In reading order: attention, layers, vision, resampler, gated_xattn, lm, flamingo, generate, tokenizer; then what stands
around the model: data, training, evaluation, plots.
"""

__version__ = "0.1.0"

from .complete import LoadedFlamingo, complete, remember
from .config import FlamingoConfig, LMConfig, ResamplerConfig, VisionConfig, preset
from .data.sample import EOC, Sample, Unscored, collate
from .flamingo import Batch, Flamingo
from .generate import beam_search, generate, score_answers
from .lm import LM
from .resampler import PerceiverResampler
from .saving import load, save
from .tokenizer import Tokenizer, ToyTokenizer
from .vision import ViT

__all__ = [
    "EOC", "LM", "Batch", "Flamingo", "FlamingoConfig", "LMConfig", "LoadedFlamingo", "PerceiverResampler", "ResamplerConfig",
    "Sample", "Tokenizer", "ToyTokenizer", "Unscored", "ViT", "VisionConfig", "beam_search", "collate", "complete", "generate",
    "load", "preset", "remember", "save", "score_answers",
]  # fmt: skip
