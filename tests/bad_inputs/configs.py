"""Configurations, our own and those of other projects; JSON files and saved tokenizers."""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from minflamingo import Flamingo, Pipeline, ToyTokenizer, load
from minflamingo.config import FlamingoConfig, preset
from minflamingo.data.images import ImagePreprocessor
from minflamingo.pretrained import clip, idefics, language_models
from minflamingo.training.checkpoint import load_json

from . import Case, judge

TOKENIZER = ToyTokenizer([" cat", " dog"])
GOOD = preset("tiny", TOKENIZER.vocab_size).to_dict()
BAD = {  # values that no field of a type may have
    int: (-96, 96.0, "96", True, [96], 10**9, 10**30, math.nan, {}),
    float: (math.nan, math.inf, -math.inf, -1, "1", True, [1.0], 10**400, {}),
    bool: (0, 1, 1.0, "true", None, []),
    str: ("transformer", "", 1, True, [], {}, math.nan),
}


def bad_values(kind: type) -> tuple:
    if get_origin(kind) is Literal:
        return BAD[str]
    plain = next((k for k in (bool, int, float) if k is kind or k in get_args(kind)), dict)
    return (*BAD.get(plain, (None, [], 3, "x")), *(() if type(None) in get_args(kind) or plain in (bool, dict) else (None,)))


def changed(part: str | None, **values: object) -> dict:
    return {**GOOD, part: {**GOOD[part], **values}} if part else {**GOOD, **values}


def all_refused(name: str, use: Callable, inputs: list, message: str) -> Case:
    """One case for many inputs: each must be refused with this message. It gives those with another outcome."""

    def run(folder: Path) -> list:
        return [f"{value!r:.300}: {problem}" for value in inputs
                if (problem := judge(Case("", lambda _, v=value: use(v), refused=message), folder))]  # fmt: skip

    return Case(name, run, gives=[])


def own_fields() -> Iterator[Case]:
    """Every field of every config, with values of wrong types and out of range; as from JSON and in Python."""
    for part in (None, "vision", "resampler", "lm"):
        kind = get_type_hints(FlamingoConfig)[part] if part else FlamingoConfig
        for field in fields(kind):
            is_config = part is None and field.name in ("vision", "resampler", "lm")
            message = "Config" if is_config else rf"{kind.__name__}\.{field.name} "
            contents = [changed(part, **{field.name: value}) for value in bad_values(get_type_hints(kind)[field.name])]
            yield all_refused(f"{part}.{field.name}", FlamingoConfig.from_dict, contents, message)
    for part, values, refused in (
        ("lm", dict(rotary_pct=0.32), "must give an even number"), ("lm", dict(rotary_pct=1.1), "from 0 to 1"),
        ("lm", dict(norm_eps=0), "norm_eps is 0"), ("lm", dict(dropout=1.1), "from 0 to 1"), ("lm", dict(n_layers=0), "from 1"),
        ("lm", dict(d=95), "n_heads=2 does not divide d=95"), ("lm", dict(n_heads=0), "n_heads is 0"),
        ("lm", dict(vocab_size=0), "vocab_size is 0"), ("lm", dict(max_length=0), "max_length is 0"),
        ("lm", dict(d_ff=0), "d_ff is 0"), ("lm", dict(position="learned", max_length=None), "learned positions need a limit"),
        ("vision", dict(patch_size=7), "does not divide image_size"), ("vision", dict(patch_size=1), "the conv stem needs"),
        ("resampler", dict(n_latents=0), "n_latents is 0"), ("resampler", dict(n_layers=0), "n_layers is 0"),
        ("resampler", dict(d_head=0), "d_head is 0"), (None, dict(n_added_tokens=0), "n_added_tokens is 0"),
        (None, dict(image_token=1), "there are 1 added tokens"), (None, dict(xattn_first=3), "the LM has 3 layers"),
        (None, dict(xattn_every=4), "the LM has 3 layers"), (None, dict(xattn_evry=1), "did you mean 'xattn_every'"),
        ("vision", dict(ears=2), "unknown field 'ears'"), (None, {"x" * 10**6: 1}, "unknown field .xxx"),
    ):  # fmt: skip
        content = changed(part, **values)
        yield Case(f"{part} with {values!r:.40}", lambda _, c=content: FlamingoConfig.from_dict(c),
                   refused=refused)
    for part in ("vision", "resampler", "lm"):
        yield Case(f"without {part}", lambda _, p=part: FlamingoConfig.from_dict({k: v for k, v in GOOD.items() if k != p}),
                   refused=part)
    for content in (None, [], "config", 3):
        yield Case(f"a config that is {content!r}", lambda _, c=content: FlamingoConfig.from_dict(c),
                   refused="invalid FlamingoConfig")
    for part, values in (
        ("lm", dict(rotary_pct=1, alibi_max=8, dropout=0)), ("lm", dict(d_ff=None, max_length=None)),
        ("lm", dict(rotary_pct=0.0)), ("vision", dict(n_layers=0)), ("resampler", dict(n_time_embeddings=0)),
        (None, dict(added_head="tied")),
    ):  # fmt: skip
        config = changed(part, **values)
        yield Case(f"good: {part} with {values}", lambda _, c=config: FlamingoConfig.from_dict(c).to_dict() == c, gives=True)


def preprocessors() -> Iterator[Case]:
    three = {"mean": (0.5, 0.5, math.nan), "std": (0.5, 0.5, math.inf)}
    for name, values in {
        "size": (0, -8, 8.0, "8", True, None, 10**9), "resize": ("fit", None, 1, []),
        **{name: ((), (0.5,), (0.5,) * 4, "abc", None, 0.5, {}, ("0", "0", "0"), [None] * 3, [[0.5] * 3], [math.inf] * 3, bad)
           for name, bad in three.items()},
        "std ": ((0, 0, 0), (-0.5, 0.5, 0.5), (1e-300,) * 3),
    }.items():  # fmt: skip
        message = rf"ImagePreprocessor\.{name.strip()} is .*(must be|choose one of 'squash', 'crop')"
        contents = [{"size": 8, name.strip(): value} for value in values]
        yield all_refused(f"preprocessing with {name}", lambda content: ImagePreprocessor(**content), contents, message)
    yield Case("preprocessing with lists", lambda _: ImagePreprocessor(8, [0, 0, 0], [1, 1, 1]).std, gives=(1, 1, 1))


# ---------------------------------------------------------------------------------------------------- JSON and saved models

JSON = {  # content of a file -> what load_json must say, or the value
    "empty": (b"", "not valid JSON"), "cut": (b'{"a": 1', "not valid JSON"), "a list": (b"[1]", "expected a JSON object"),
    "null": (b"null", "expected a JSON object"), "a number": (b"3", "expected a JSON object"),
    "words": (b"config", "not valid JSON"), "deep lists": (b'{"a": ' + b"[" * 10**5, "too many levels"),
    "deep objects": (b'{"a":' * 10**5, "too many levels"),
    "deep and closed": (b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "too many levels"),
    "a huge number": (b'{"a": ' + b"1" * 10**4 + b"}", "not valid JSON.*limit"), "a key twice": (b'{"a": 1, "a": 2}', "twice"),
    "a key twice, inside": (b'{"b": [{"a": 1, "a": 2}]}', "twice"), "binary": (bytes(range(256)), "not valid JSON"),
    "zeros": (bytes(1000), "not valid JSON"), "two objects": (b"{} {}", "not valid JSON"),
    "a comment": (b"{} // a", "not valid JSON"), "single quotes": (b"{'a': 1}", "not valid JSON"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not valid JSON"), "with a BOM": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), {"a": 1}), "UTF-32": ('{"a": 1}'.encode("utf-32"), {"a": 1}),
    "an empty object": (b"{}", {}),
}  # fmt: skip
NOT_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo, "a folder": Path.mkdir, "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name), "missing": lambda path: None,
}  # fmt: skip


def json_files() -> Iterator[Case]:
    for name, (content, result) in JSON.items():
        outcome = {"refused": rf"^a\.json: .*{result}"} if isinstance(result, str) else {"gives": result}
        yield Case(f"JSON: {name}", lambda _, c=content: (Path("a.json").write_bytes(c), load_json("a.json"))[1], **outcome)
    for name, make in NOT_FILES.items():
        yield Case(f"JSON: {name}", lambda _, m=make: (m(Path("a.json")), load_json("a.json")), refused=r"a\.json")


@cache
def saved_files() -> dict[str, bytes]:
    """A small model as `save` writes it."""
    with TemporaryDirectory() as folder:
        Pipeline(Flamingo(FlamingoConfig.from_dict(GOOD)), TOKENIZER, ImagePreprocessor(48)).save(folder)
        load(folder)  # imports some parts of torch, which would take seconds in the process of each case
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def load_with(**files: object) -> Pipeline:
    """Load this model from the current folder, with another content of `config`, `tokenizer` (JSON) or `model`."""
    for name, content in saved_files().items():
        content = files.get(name.split(".")[0], content)
        Path(name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return load(".")


def saved_models() -> Iterator[Case]:
    saved_files()  # once, before the processes of the cases begin
    image = json.loads(json.dumps(asdict(ImagePreprocessor(48))))
    good = {"flamingo": GOOD, "image": image}
    yield Case("a good saved model", lambda _: type(load_with(config=good)), gives=Pipeline)
    for name, content, refused in (
        ("a foreign config", {"model_type": "llama"}, "unknown field 'model_type'"),
        ("an unknown key", {**good, "version": 3}, "unknown field 'version'"), ("no image", {"flamingo": GOOD}, "image"),
        ("no flamingo", {"image": image}, "flamingo"),
        ("a list as flamingo", {**good, "flamingo": []}, "invalid FlamingoConfig"),
        ("null as image", {**good, "image": None}, "invalid ImagePreprocessor"),
        ("an unknown key of image", {**good, "image": {"resolution": 8}}, "unknown field 'resolution'"),
        ("another image size", {**good, "image": {**image, "size": 24}}, "image.size is 24 .* image_size 48"),
        ("another d", {**good, "flamingo": changed("vision", d=32, n_heads=1)}, "resampler.d is 96, but .* d=32"),
        ("a negative std", {**good, "image": {**image, "std": [-1, 1, 1]}}, "std"),
        ("a misspelled field", {**good, "flamingo": {**GOOD, "xattn_evry": 1}}, "did you mean 'xattn_every'"),
        ("10**9 layers", {**good, "flamingo": changed("lm", n_layers=10**9)}, r"LMConfig\.n_layers is 1000000000"),
        ("10**9 words", {**good, "flamingo": changed("lm", vocab_size=10**9)}, r"LMConfig\.vocab_size is 1000000000"),
        ("d=96.0", {**good, "flamingo": changed("vision", d=96.0)}, r"VisionConfig\.d is 96\.0"),
        *((name, content, "not valid JSON|expected a JSON object|twice")
          for name, (content, result) in JSON.items() if isinstance(result, str)),
    ):  # fmt: skip
        yield Case(f"config.json: {name}", lambda _, c=content: load_with(config=c), refused=rf"config\.json.*({refused})")
    toy = {"kind": "toy", "words": TOKENIZER.words}
    for name, content, refused in (
        ("words that are numbers", {**toy, "words": [1, 2]}, "word list"),
        ("a text as words", {**toy, "words": "ab"}, "word list"), ("no words", {"kind": "toy"}, "word list"),
        ("null as words", {**toy, "words": None}, "word list"),
        ("a word twice", {**toy, "words": [" a", " a"]}, "appears twice"),
        ("two words in one", {**toy, "words": ["a b"]}, "single piece"),
        ("an empty word", {**toy, "words": ["", " b"]}, "single piece"),
        ("another kind", {**toy, "kind": "bpe"}, '"kind": "toy"'), ("kind 3", {**toy, "kind": 3}, "word list"),
        ("kind []", {**toy, "kind": []}, "word list"),
        ("one word more", {**toy, "words": [*TOKENIZER.words, " cow"]},
            "<image> is 262 in tokenizer.json, but 261 in config.json"),
        ("no words at all", {**toy, "words": []}, "<image> is 259"),
        ("a tokenizer of another project", {"version": "1.0", "model": {"type": "BPE"}}, "word list"),
        ("pretrained, without the rest", {"kind": "pretrained"}, "tokenizer"),
        *((name, content, "not valid JSON|expected a JSON object|twice")
          for name, (content, result) in JSON.items() if isinstance(result, str)),
    ):  # fmt: skip
        yield Case(f"tokenizer.json: {name}", lambda _, c=content: load_with(tokenizer=c), refused=refused)


# ------------------------------------------------------------------------------------------------------ other projects

BASE = dict(architectures=["A"], torch_dtype="float16", transformers_version="4.28.1", use_cache=True, bos_token_id=0,
            eos_token_id=2, initializer_range=0.02, attention_dropout=0.1, _name_or_path="a/b")  # fmt: skip
OLD = dict(  # every config inside a config had these until 2023
    pruned_heads={}, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, max_length=20, min_length=0, num_beams=1, top_k=50,
    top_p=1.0, temperature=1.0, do_sample=False, early_stopping=False, bad_words_ids=None, is_decoder=False, torchscript=False,
    is_encoder_decoder=False, add_cross_attention=False, cross_attention_hidden_size=None, tie_word_embeddings=True,
    prefix=None, return_dict=True, return_dict_in_generate=False, output_attentions=False, output_hidden_states=False,
    output_scores=False, problem_type=None, task_specific_params=None, tf_legacy_loss=False, tie_encoder_decoder=False,
    tokenizer_class=None, typical_p=1.0, use_bfloat16=False, sep_token_id=None, decoder_start_token_id=None,
    repetition_penalty=1.0, finetuning_task=None, length_penalty=1.0, no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0,
    num_beam_groups=1, diversity_penalty=0.0, num_return_sequences=1, remove_invalid_values=False, suppress_tokens=None,
    begin_suppress_tokens=None, forced_bos_token_id=None, exponential_decay_length_penalty=None, chunk_size_feed_forward=0,
    model_type="clip_vision_model", dropout=0.0,
)  # fmt: skip
ATTN = dict(alibi=True, alibi_bias_max=8, attn_impl="torch", attn_pdrop=0, attn_type="multihead_attention", qk_ln=False,
            attn_uses_sequence_id=False, clip_qkv=None, prefix_lm=False, softmax_scale=None)  # fmt: skip
INIT = dict(emb_init_std=None, emb_init_uniform_lim=None, fan_mode="fan_in", init_div_is_residual=True,
    init_gain=0, init_std=0.02, init_nonlinearity="relu", verbose=0)  # fmt: skip
VIT = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
    patch_size=14, hidden_act="quick_gelu", layer_norm_eps=1e-5, num_channels=3, projection_dim=768,
    initializer_factor=1.0)  # fmt: skip
HUGE = dict(embed_dim=1280, hidden_act="gelu", image_size=224, intermediate_size=5120, num_attention_heads=16,
    num_hidden_layers=32, patch_size=14, layer_norm_eps=1e-5, num_channels=3, image_num_channels=3,
    vision_model_name="laion/CLIP-ViT-H-14")  # fmt: skip
PUBLISHED = {  # the fields of the config.json of published models
    "gpt2": dict(BASE, model_type="gpt2", vocab_size=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024,
        activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, layer_norm_epsilon=1e-5,
        summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
        summary_use_proj=True, task_specific_params={"text-generation": {"max_length": 50}}, n_special=0,
        predict_special_tokens=True, n_inner=None, scale_attn_weights=True, reorder_and_upcast_attn=False),
    "opt-125m": dict(BASE, model_type="opt", vocab_size=50272, hidden_size=768, ffn_dim=3072, num_hidden_layers=12,
        pad_token_id=1, num_attention_heads=12, max_position_embeddings=2048, activation_function="relu",
        do_layer_norm_before=True, word_embed_proj_dim=768, _remove_final_layer_norm=False, activation_dropout=0.0, dropout=0.1,
        layerdrop=0.0, init_std=0.02, prefix="</s>"),
    "redpajama-3b": dict(BASE, model_type="gpt_neox", vocab_size=50432, hidden_size=2560, intermediate_size=10240,
        rotary_pct=1.0, num_hidden_layers=32, num_attention_heads=32, rotary_emb_base=10000, hidden_act="gelu",
        layer_norm_eps=1e-5, max_position_embeddings=2048, tie_word_embeddings=False, use_parallel_residual=False),
    "pythia-1b": dict(BASE, model_type="gpt_neox", vocab_size=50304, hidden_size=2048, intermediate_size=8192, rotary_pct=0.25,
        num_hidden_layers=16, num_attention_heads=8, rotary_emb_base=10000, hidden_act="gelu", layer_norm_eps=1e-5,
        max_position_embeddings=2048, tie_word_embeddings=False, use_parallel_residual=True, classifier_dropout=0.1,
        attention_bias=True, hidden_dropout=0.0, rope_scaling=None, rope_theta=10000, partial_rotary_factor=0.25),
    "mpt-7b": dict(BASE, model_type="mpt", attn_config=ATTN, auto_map={"AutoConfig": "configuration_mpt.MPTConfig"},
        d_model=4096, emb_pdrop=0, embedding_fraction=1.0, expansion_ratio=4, init_config={**INIT, "name": "kaiming_normal_"},
        init_device="cpu", learned_pos_emb=True, logit_scale=None, max_seq_len=2048, n_heads=32, n_layers=32, no_bias=True,
        norm_type="low_precision_layernorm", resid_pdrop=0, tokenizer_name="EleutherAI/gpt-neox-20b", verbose=0,
        vocab_size=50432),
    "mpt-1b": dict(BASE, model_type="mosaic_gpt", alibi=True, alibi_bias_max=8, attn_clip_qkv=None, attn_impl="torch",
        attn_pdrop=0, attn_qk_ln=True, attn_uses_sequence_id=False, auto_map={}, d_model=2048, emb_pdrop=0,
        embedding_fraction=1.0, init_device="cpu", logit_scale=None, low_precision_layernorm=True, max_seq_len=2048,
        mlp_ratio=4, n_heads=16, n_layers=24, no_bias=True, param_init_fn="kaiming_normal_", prefix_lm=False, resid_pdrop=0,
        softmax_scale=None, tokenizer_name="EleutherAI/gpt-neox-20b", vocab_size=50432, **INIT),
    "llama-2-7b": dict(BASE, model_type="llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, hidden_act="silu", max_position_embeddings=4096,
        pad_token_id=0, max_sequence_length=2048, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None,
        tie_word_embeddings=False),
    "smollm2-135m": dict(BASE, model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536,
        num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, hidden_act="silu", max_position_embeddings=8192,
        mlp_bias=False, attention_bias=False, is_llama_config=True, pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False,
        rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, **{"transformers.js_config": {"dtype": "q4"}}),
    "clip-vit-large-patch14": dict(BASE, model_type="clip", initializer_factor=1.0, logit_scale_init_value=2.6592,
        projection_dim=768, text_config={**OLD, "hidden_size": 768}, text_config_dict={"hidden_size": 768},
        vision_config={**OLD, **VIT}, vision_config_dict={"hidden_size": 1024, "patch_size": 14}),
    "a vision encoder alone": dict(BASE, **{**VIT, "model_type": "clip_vision_model"}),
    "idefics-9b": dict(BASE, model_type="idefics", additional_vocab_size=2, alpha_initializer="zeros", alpha_type="float",
        alphas_initializer_range=0.0, cross_layer_activation_function="swiglu", cross_layer_interval=4, dropout=0.0,
        ffn_dim=11008, freeze_lm_head=False, freeze_text_layers=False, freeze_text_module_exceptions=[],
        freeze_vision_layers=False, freeze_vision_module_exceptions=[], hidden_act="silu", hidden_size=4096,
        intermediate_size=11008, max_position_embeddings=2048, max_sequence_length=2048, max_new_tokens=100,
        num_attention_heads=32, num_hidden_layers=32, pad_token_id=0, qk_layer_norms=True, rms_norm_eps=1e-6,
        tie_word_embeddings=False, use_resampler=True, vocab_size=32000, word_embed_proj_dim=4096, vision_embed_dim=1280,
        vision_image_size=224, vision_model_name="laion/CLIP", vision_model_params="{}",
        vision_config={**OLD, **HUGE, "model_type": "idefics"},
        perceiver_config={**OLD, "resampler_depth": 6, "resampler_head_dim": 96, "resampler_n_heads": 16,
        "resampler_n_latents": 64, "qk_layer_norms_perceiver": True, "use_resampler": True}),
    "SmolLM2.gguf": {"model_type": "llama.gguf", "vocab_size": 49152, "tie_word_embeddings": True, "GGUF.version": 3,
        "GGUF.kv_count": 30, "general.architecture": "llama", "general.name": "Smol", "tokenizer.ggml.model": "gpt2",
        "quantize.imatrix.file": "a", **{f"llama.{key}": value for key, value in {"vocab_size": 49152, "context_length": 8192,
        "embedding_length": 576, "block_count": 30, "feed_forward_length": 1536, "rope.dimension_count": 64,
        "rope.freq_base": 100000.0, "attention.head_count": 9, "attention.head_count_kv": 3,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.key_length": 64}.items()}},
}  # fmt: skip
NOT_IMPLEMENTED = {  # a setting that changes the numbers of a model
    "gpt2": dict(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False, activation_function="mish",
        add_cross_attention=True, is_encoder_decoder=True, pruned_heads={"0": [1]}, quantization_config={"bits": 4},
        position_embedding_type="relative"),
    "opt-125m": dict(do_layer_norm_before=False, word_embed_proj_dim=512, _remove_final_layer_norm=True, enable_bias=False,
        layer_norm_elementwise_affine=False, activation_function="selu", scale_embeddings=True),
    "redpajama-3b": dict(rope_scaling={"type": "linear", "factor": 2.0}, hidden_act="selu",
        rope_parameters={"rope_type": "yarn"}, sliding_window=128, qk_layernorm=True),
    "mpt-7b": dict(norm_type="rmsnorm", ffn_config={"ffn_type": "mptglu"}, attn_config={**ATTN,
        "attn_type": "multiquery_attention"}, no_bias=False, logit_scale="inv_sqrt_d_model", embedding_fraction=0.5,
        fc_type="te", block_overrides={}, final_logit_softcapping=30.0, kv_n_heads=8, learned_pos=1),
    "mpt-1b": dict(alibi=False, attn_clip_qkv=6, softmax_scale=0.1, prefix_lm=True, no_bias=False,
        attn_type="grouped_query_attention", attn_uses_sequence_id=True, rope=True, qk_gn=True, sliding_window_size=512,
        attn_logit_softcapping=50.0),
    "llama-2-7b": dict(rope_scaling={"rope_type": "llama3"}, head_dim=64, pretraining_tp=2, hidden_act="gelu_10", num_experts=8,
        partial_rotary_factor=0.5, rope_interleaved=True, sliding_window=4096, quantization_config={"bits": 4},
        rope_parameters={"rope_type": "dynamic"}, layer_types=["full"], attn_temperature=2.0),
    "clip-vit-large-patch14": dict(vision_config={**VIT, "num_channels": 1}, vision_config_dict={"hidden_act": "mish"},
        vision_config_={}, vision_feature_layer=3),
    "idefics-9b": dict(alpha_type="matrix", cross_layer_activation_function="relu", hidden_act="mish", use_qformer=True,
        vision_config={**HUGE, "rotary": True}, perceiver_config={"resampler_depth": 6, "resampler_head_dim": 96,
        "resampler_n_heads": 16, "resampler_n_latents": 64, "use_resampler": True, "gated": True}),
    "SmolLM2.gguf": {f"llama.{key}": value for key, value in {"rope.scaling.type": "yarn", "attention.key_length": 32,
        "expert_count": 8, "rope.scaling.factor": 2.0, "attention.sliding_window": 4096, "attention.value_length": 32,
        "rope.dimension_count": 32}.items()},
}  # fmt: skip
SIZES = {
    "gpt2": "vocab_size n_embd n_layer n_head n_positions",
    "redpajama-3b": "vocab_size hidden_size num_hidden_layers num_attention_heads",
    "opt-125m": "vocab_size hidden_size num_hidden_layers num_attention_heads ffn_dim max_position_embeddings",
    "mpt-7b": "vocab_size d_model n_layers n_heads", "mpt-1b": "vocab_size d_model n_layers n_heads",
    "llama-2-7b": "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads",
    "a vision encoder alone": "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size",
    "idefics-9b": "vocab_size hidden_size cross_layer_interval additional_vocab_size vision_config perceiver_config",
    "clip-vit-large-patch14": "vision_config", "SmolLM2.gguf": "vocab_size",
}  # fmt: skip


def read(content: dict) -> object:
    kind = str(content.get("model_type"))
    return (idefics.config if kind == "idefics" else clip.config if "clip" in kind else language_models.read_lm_config)(content)


def foreign_configs() -> Iterator[Case]:
    for name, content in PUBLISHED.items():
        yield Case(f"the published {name}", lambda _, c=content: json.loads(json.dumps(c)) == c and read(c) is not None,
                   gives=True)
        for key, value in NOT_IMPLEMENTED.get(name, {}).items():
            inside = value.items() if isinstance(value, dict) else ()
            plain = str(next((v for k, v in inside if k in ("attn_type", "ffn_type", "rope_type")), key))
            shown = plain.removeprefix("llama.").removeprefix("attn_").replace("rope.dimension_count", "head_dim")
            yield Case(f"{name} with {key}={value!r:.50}", lambda _, c={**content, key: value}: read(c),
                       refused=rf"^the config of this .*({shown}|vision_config|perceiver_config).*(implemented|=)")  # fmt: skip
        for key in SIZES.get(name, "").split():
            without = {k: v for k, v in content.items() if k != key}
            contents = [without, *({**content, key: value} for value in (None, "96", 0, -1, 96.0, True, [], 10**9, math.nan))]
            message = f"^the config of this {content['model_type']}: "
            yield all_refused(f"{name} with wrong values of {key}", read, contents, message)
        settings = {"tie_word_embeddings": 1, "a_new_setting": 3, "rms_norm_eps": math.nan, "layer_norm_eps": -1}
        for key, value in settings.items():
            if key in content or key == "a_new_setting":
                yield Case(f"{name} with {key}={value}", lambda _, c={**content, key: value}: read(c),
                           refused=rf"^the config of this .*{key}")  # fmt: skip
    for kind in ("rwkv", None, 3, [], {}, "x" * 1000):
        yield Case(f"the family {kind!r:.20}", lambda _, k=kind: read({"model_type": k}),
                   refused="unknown family of language models")
    for content in (None, [], "gpt2", 3, torch.zeros(1)):
        yield Case(f"a foreign config that is {content!r}", lambda _, c=content: language_models.read_lm_config(c),
                   refused="must be a dict")


def cases() -> Iterator[Case]:
    for part in (own_fields, preprocessors, json_files, saved_models, foreign_configs):
        yield from part()
